"""``qanat-agent run``: attach to the server and stay attached."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import click
import trio

from tunnel_agent.app import run_agent
from tunnel_agent.commands.options import bundle_option, config_option, installation_of
from tunnel_agent.join import first_run
from tunnel_agent.join.places import files_of
from tunnel_core.cli.command_line import CommandError, ExitCode, printable
from tunnel_core.config.loader import ConfigError
from tunnel_core.config.types import Ops
from tunnel_core.runtime.memory_tuning import tune_memory
from tunnel_core.streams.sockets import why_not_listening
from tunnel_core.telemetry import logs
from tunnel_core.telemetry.queued_output import queue_standard_error


@click.command("run")
@config_option
@bundle_option
def command(config: Path | None, bundle: Path | None) -> None:
    """Attach to the server and stay attached.

    After SIGTERM or the end of its terminal, running streams may finish for drain_seconds; SIGINT (Ctrl-C)
    stops the agent at once. The status page is at http://127.0.0.1:7005/, or at [ops] listen. With
    QANAT_SERVER in its environment a node without a bundle joins first: see docs/environment.md.

    \b
    Examples:
      qanat-agent run
      qanat-agent run --config ./agent.toml
      qanat-agent run --bundle edge1.pem
    """
    _maybe_join(config, bundle)
    installation = installation_of(config, bundle)
    tune_memory()
    queue_standard_error()
    logs.setup(installation.config.log.level, installation.config.log.format)
    try:
        trio.run(run_agent, installation)
    except OSError as error:
        ops = installation.config.ops
        cause = _running_agent(ops, error) or why_not_listening(error, ops.listen.port if ops.listen else 0)
        message = f"cannot listen on {ops.listen}, [ops] listen in {installation.file}: {cause}"
        raise CommandError(ExitCode.FAILED, message) from None


def _running_agent(ops: Ops, error: OSError) -> str:
    """Return what to do about another agent at this port; empty if no agent has the port."""
    if error.errno != errno.EADDRINUSE:
        return ""
    # Late imports, because a running agent needs neither: an HTTP client costs 1 MB.
    import http.client

    from tunnel_agent.status.client import fetch_status

    try:
        node = printable(str(fetch_status(ops)["node"]))
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return ""
    stop = "stop it first (`qanat-agent status` shows it)"
    return f"an agent runs on this machine already, for node {node}; {stop}, or configure another port"


def _maybe_join(config: Path | None, bundle: Path | None) -> None:
    """Join if the environment asks for it. Raises ``CommandError``, or exits with the failed join's code."""
    if first_run.SERVER not in os.environ:
        return
    try:
        place = bundle or files_of(config).bundle
        first_run.join_at_first_run(os.environ, place, config)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except first_run.CannotJoin as error:
        if message := str(error):
            raise CommandError(ExitCode(error.code), message) from None
        sys.exit(error.code)
