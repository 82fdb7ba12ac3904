"""``qanat-server run``: serve until a signal."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click
import trio

from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.config import paths
from tunnel_core.runtime.memory_tuning import tune_memory
from tunnel_core.telemetry import logs
from tunnel_core.telemetry.logs import log_event
from tunnel_core.telemetry.queued_output import queue_standard_error
from tunnel_server.app import CannotStart
from tunnel_server.commands.access import load_config
from tunnel_server.commands.first_run import install_if_requested, log_installation
from tunnel_server.entrances.open_listeners import Addresses
from tunnel_server.process import run_server

_log = logging.getLogger("qanat.server")


@click.command("run")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=paths.config_option_help("server.toml"),
)
def command(config: Path | None) -> None:
    """Serve agents and users. SIGTERM drains: streams get drain_seconds to finish. SIGHUP reloads
    certificates. The end of the terminal in which the server was started also drains.

    With QANAT_INIT_NAME in its environment, it first installs into an empty data folder as
    `qanat-server init` does.

    \b
    Examples:
      qanat-server run
      qanat-server run --config ./try/server.toml
    """
    path = config or paths.server_config_file()
    made = install_if_requested(os.environ, path)
    loaded = load_config(config)
    tune_memory()
    queue_standard_error()
    logs.setup(loaded.log.level, loaded.log.format)
    if made is not None:
        log_installation(made)
    try:
        drained = trio.run(run_server, loaded, _log_ready)
    except CannotStart as error:
        raise CommandError(ExitCode.FAILED, str(error)) from None
    except Exception:
        _log.critical("the server ends because of a bug", exc_info=True)
        raise CommandError(ExitCode.FAILED, "ended because of a bug; the log has the traceback") from None
    if not drained:
        sys.exit(ExitCode.FAILED)


def _log_ready(addresses: Addresses) -> None:
    fields = {name: ", ".join(listed) for name, listed in addresses.items()}
    log_event(_log, logging.INFO, "ready", **fields)
