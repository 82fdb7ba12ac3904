"""``qanat-agent``: the command line of the edge side."""

from __future__ import annotations

import click

from certs.token import trouble_with_arguments
from tunnel_core.cli.command_line import LateGroup, version_option

_COMMANDS = {
    "join": "tunnel_agent.commands.join:command",
    "run": "tunnel_agent.commands.run:command",
    "check": "tunnel_agent.commands.check:command",
    "renew": "tunnel_agent.commands.renew:command",
    "status": "tunnel_agent.commands.status:command",
    "config": "tunnel_agent.commands.config:command",
    "service": "tunnel_agent.commands.service:command",
    "health": "tunnel_agent.commands.health:command",
    "version": "tunnel_agent.commands.version:command",
    "completion": "tunnel_core.cli.completion:completion",
    "man": "tunnel_core.cli.manual:man",
}


@click.group(
    cls=LateGroup,
    places=_COMMANDS,
    guard=trouble_with_arguments,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@version_option("qanat-agent")
def main() -> None:
    """The edge side of Qanat: dials out to a server and lets its users reach the targets that you allow.

    A first start takes a token from `qanat-server token create --node NAME`.

    \b
    Examples:
      echo TOKEN | qanat-agent join tunnel.example.com
      qanat-agent run
    """
