"""``qanat-agent run``: attach to the server and stay attached."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from tunnel_agent.app import run_agent
from tunnel_agent.commands.options import bundle_option, config_option, installation_of
from tunnel_core import logs
from tunnel_core.command_line import CommandError, ExitCode
from tunnel_core.memory import keep_memory


@click.command("run")
@config_option
@bundle_option
def command(config: Path | None, bundle: Path | None) -> None:
    """Attach to the server and stay attached.

    SIGTERM lets running streams finish for drain_seconds; SIGINT (Ctrl-C) ends at once. The status
    page is at http://127.0.0.1:7005/ unless [ops] says otherwise.

    \b
    Examples:
      qanat-agent run
      qanat-agent run --config ./agent.toml
      qanat-agent run --bundle edge1.pem
    """
    installation = installation_of(config, bundle)
    logs.setup(installation.config.log.level, installation.config.log.format)
    keep_memory()
    try:
        trio.run(run_agent, installation)
    except OSError as error:
        message = f"cannot listen on {installation.config.ops.listen}, [ops] listen: {error.strerror}"
        raise CommandError(ExitCode.FAILED, message) from None
