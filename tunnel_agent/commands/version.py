"""``qanat-agent version``: versions of the agent and of its libraries."""

from __future__ import annotations

import platform
from importlib.metadata import version

import click

from tunnel_agent.commands.options import json_option
from tunnel_core.cli.command_line import print_json
from tunnel_core.version import __version__, form


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Print the versions of the agent and of its libraries.

    \b
    Examples:
      qanat-agent version
      qanat-agent version --json
    """
    versions = {
        "qanat": __version__,
        "form": form(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "trio": version("trio"),
        "system": platform.platform(terse=True),
    }
    if as_json:
        print_json(versions)
    else:
        click.echo("\n".join(f"{name:<8}{text}" for name, text in versions.items()))
