"""``qanat-agent run``: attach to the server and stay attached."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import trio

from tunnel_agent import first_run
from tunnel_agent.app import run_agent
from tunnel_agent.commands.options import bundle_option, config_option, installation_of
from tunnel_agent.join.places import files_of
from tunnel_core import logs
from tunnel_core.command_line import CommandError, ExitCode
from tunnel_core.config import ConfigError
from tunnel_core.memory import keep_memory
from tunnel_core.queued_output import queue_standard_error


@click.command("run")
@config_option
@bundle_option
def command(config: Path | None, bundle: Path | None) -> None:
    """Attach to the server and stay attached.

    SIGTERM lets running streams finish for drain_seconds; SIGINT (Ctrl-C) ends at once. The status
    page is at http://127.0.0.1:7005/ unless [ops] says otherwise. With QANAT_SERVER in its environment
    a node without a bundle joins first: see docs/environment.md.

    \b
    Examples:
      qanat-agent run
      qanat-agent run --config ./agent.toml
      qanat-agent run --bundle edge1.pem
    """
    _maybe_join(config, bundle)
    installation = installation_of(config, bundle)
    keep_memory()
    queue_standard_error()
    logs.setup(installation.config.log.level, installation.config.log.format)
    try:
        trio.run(run_agent, installation)
    except OSError as error:
        message = f"cannot listen on {installation.config.ops.listen}, [ops] listen: {error.strerror}"
        raise CommandError(ExitCode.FAILED, message) from None


def _maybe_join(config: Path | None, bundle: Path | None) -> None:
    """Ends the command if the join that the environment asks for does not succeed."""
    if first_run.SERVER not in os.environ:
        return
    try:
        place = bundle or files_of(config).bundle
        first_run.join_if_told(os.environ, place, config)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except first_run.CannotJoin as error:
        if message := str(error):
            raise CommandError(ExitCode(error.code), message) from None
        sys.exit(error.code)
