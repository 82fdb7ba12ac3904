"""``qanat-agent health``, for the help texts; ``entry`` runs the probe before the command line is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tunnel_agent.defaults import OPS_LISTEN
from tunnel_core.config import paths
from tunnel_core.runtime.health_probe import OpsEndpoint, Unhealthy, report


@click.command("health")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help=paths.config_option_help("agent.toml"),
)
def command(config: Path | None) -> None:
    """Check that the agent on this machine answers: exit code 0 if it does, 1 if not.

    For container runtimes and watchdogs. An agent without a link to its server is healthy.
    `qanat-agent status` shows the link.

    \b
    Examples:
      qanat-agent health
    """
    try:
        file = config or paths.agent_config_file()
        endpoint = OpsEndpoint.find(file, OPS_LISTEN, os.environ, is_named=config is not None)
    except Unhealthy as error:
        raise click.ClickException(str(error)) from None
    click.get_current_context().exit(report(endpoint))
