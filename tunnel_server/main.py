"""``qanat-server``: the command line of the cloud side."""

from __future__ import annotations

import importlib

import click

from tunnel_core.command_line import require_extra

_HELP = {"help_option_names": ["-h", "--help"]}


class _LateGroup(click.Group):
    """Imports a subcommand when it is asked for, so that ``issue`` does not wait for gRPC."""

    names = ("init", "issue")

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.names:
            return None
        module = importlib.import_module(f"tunnel_server.commands.{name}")
        command: click.Command = module.command
        return command


@click.group(cls=_LateGroup, context_settings=_HELP)
@click.version_option(package_name="qanat", prog_name="qanat-server")
def main() -> None:
    """The cloud side of Qanat: agents attach here, users come in here.

    \b
    A first start:
      qanat-server init --name tunnel.example.com
      qanat-server run
      qanat-server issue node edge1
    """


def entry_point() -> None:
    """Runs ``qanat-server``, or says what to install."""
    require_extra("rich", "server")
    main()
