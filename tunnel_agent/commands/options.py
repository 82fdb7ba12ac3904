"""Options that name the agent's files, and the end of a command whose configuration cannot be used."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel_agent.installation import Installation, load_installation
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.config import paths
from tunnel_core.config.loader import ConfigError

_FILE = click.Path(path_type=Path, dir_okay=False)

config_option = click.option(
    "--config",
    type=_FILE,
    help=paths.config_option_help("agent.toml"),
)
bundle_option = click.option("--bundle", type=_FILE, help="The node's bundle, in place of bundle_file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def installation_of(config: Path | None, bundle: Path | None) -> Installation:
    """Load the installation that the options name. Raises ``CommandError`` if it cannot be used."""
    try:
        return load_installation(config, bundle)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
