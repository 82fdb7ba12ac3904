"""``qanat-server health`` for the command line. Usually ``entry`` answers before this module is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tunnel_core.config import paths
from tunnel_core.runtime.health_probe import OpsEndpoint, Unhealthy, report
from tunnel_server.defaults import OPS_LISTEN


@click.command("health")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help=paths.config_option_help("server.toml"),
)
def command(config: Path | None) -> None:
    """Check that the server on this machine answers: exit code 0 if it does, 1 if not.

    For container runtimes and watchdogs. A server that answers is healthy. Whether it accepts
    agents and users is shown by /readyz of [ops].

    \b
    Examples:
      qanat-server health
    """
    try:
        file = config or paths.server_config_file()
        endpoint = OpsEndpoint.find(file, OPS_LISTEN, os.environ, is_named=config is not None)
    except Unhealthy as error:
        raise click.ClickException(str(error)) from None
    click.get_current_context().exit(report(endpoint))
