"""Command line of ``qanat-server``."""

from __future__ import annotations

import click

from certs.token import trouble_with_arguments
from tunnel_core.cli.command_line import LateGroup, version_option

_COMMANDS = {
    "init": "tunnel_server.commands.init:command",
    "issue": "tunnel_server.commands.issue:command",
    "run": "tunnel_server.commands.run:command",
    "config": "tunnel_server.commands.config:command",
    "service": "tunnel_server.commands.service:command",
    "health": "tunnel_server.commands.health:command",
    "token": "tunnel_server.commands.token:command",
    "node": "tunnel_server.commands.labels:node",
    "user": "tunnel_server.commands.users:user",
    "group": "tunnel_server.commands.group:command",
    "grant": "tunnel_server.commands.grant:command",
    "api-token": "tunnel_server.commands.api_token:command",
    "cert": "tunnel_server.commands.cert:command",
    "audit": "tunnel_server.commands.audit:command",
    "ca": "tunnel_server.commands.ca:command",
    "backup": "tunnel_server.commands.backup:backup",
    "restore": "tunnel_server.commands.backup:restore",
    "completion": "tunnel_core.cli.completion:completion",
    "man": "tunnel_core.cli.manual:man",
}


@click.group(
    cls=LateGroup,
    places=_COMMANDS,
    guard=trouble_with_arguments,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@version_option("qanat-server")
def main() -> None:
    """The cloud side of Qanat: accepts agents, and connects users to their nodes.

    \b
    Examples:
      qanat-server init --name tunnel.example.com
      qanat-server run
      qanat-server token create --node edge1
    """


def entry_point() -> None:
    """Run ``qanat-server``."""
    main(prog_name="qanat-server")
