"""The options that say which agent is meant, and how a bad configuration ends a command."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel_agent.installation import Installation, load_installation
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.config.loader import ConfigError

_FILE = click.Path(path_type=Path, dir_okay=False)

config_option = click.option("--config", type=_FILE, help="The agent's configuration. [default: by user]")
bundle_option = click.option("--bundle", type=_FILE, help="The node's bundle, in place of bundle_file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def installation_of(config: Path | None, bundle: Path | None) -> Installation:
    """What the options lead to. Ends the command if that cannot be used."""
    try:
        return load_installation(config, bundle)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
