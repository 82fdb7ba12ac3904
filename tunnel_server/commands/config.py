"""``qanat-server config``: the effective configuration."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.config import effective, paths
from tunnel_core.config.loader import ConfigError, load_given
from tunnel_server.commands.access import absent_fix, config_option, json_option
from tunnel_server.config import ServerConfig


@click.group("config", cls=CommandGroup)
def command() -> None:
    """Show the configuration.

    \b
    Example:
      qanat-server config show
    """


@command.command("show")
@config_option
@json_option
def show(config: Path | None, as_json: bool) -> None:
    """Print every key with its effective value and the source of the value.

    The source is a line of the file, a variable of this shell's environment, or the default. A running
    server may have been started with another file or other variables. Secrets are not shown.

    \b
    Examples:
      qanat-server config show
      qanat-server config show --json | jq -r '.settings[] | select(.from != "default") | .key'
    """
    path = config or paths.server_config_file()
    try:
        loaded, given = load_given(path, ServerConfig, absent_fix=absent_fix(config, path))
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    settings = effective.settings_of(loaded, given)
    if as_json:
        print_json(effective.as_json(settings, given.file))
    else:
        click.echo(effective.as_toml(settings, given.file))
