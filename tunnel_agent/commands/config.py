"""``qanat-agent config``: the configuration as the agent reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import attrs
import click

from tunnel_agent.commands.options import bundle_option, config_option, json_option
from tunnel_agent.config import AgentConfig
from tunnel_agent.installation import absent_fix, place_of_config
from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.config import effective
from tunnel_core.config.loader import ConfigError, load_given


@click.group("config", cls=CommandGroup)
def command() -> None:
    """Show the configuration.

    \b
    Example:
      qanat-agent config show
    """


@command.command("show")
@config_option
@bundle_option
@json_option
def show(config: Path | None, bundle: Path | None, as_json: bool) -> None:
    """Print every key with its value and the value's origin.

    The origin is the file with its line, a variable of this shell's environment, an option, or the
    default. A running agent may have other values. Secrets are not shown.

    \b
    Examples:
      qanat-agent config show
      qanat-agent config show --json | jq -r '.settings[] | select(.from != "default") | .key'
    """
    file, required = place_of_config(config)
    try:
        loaded, given = load_given(file, AgentConfig, required=required, absent_fix=absent_fix(file))
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    if bundle is not None:
        loaded = attrs.evolve(loaded, bundle_file=bundle.absolute())
        given = replace(given, arguments={"bundle_file": "--bundle"})
    settings = effective.settings_of(loaded, given)
    if as_json:
        print_json(effective.as_json(settings, given.file))
    else:
        click.echo(effective.as_toml(settings, given.file))
