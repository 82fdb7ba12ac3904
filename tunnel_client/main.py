"""``qanat``: the command line for users of the tunnel. It runs wherever Python runs, without gRPC."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel_core.cli.command_line import LateGroup, version_option

_COMMANDS = {
    "status": "tunnel_client.commands.status:status",
    "nodes": "tunnel_client.commands.nodes:nodes",
    "services": "tunnel_client.commands.listing:services",
    "sessions": "tunnel_client.commands.listing:sessions",
    "streams": "tunnel_client.commands.listing:streams",
    "events": "tunnel_client.commands.events:events",
    "policy": "tunnel_client.commands.policy:policy",
    "ssh": "tunnel_client.commands.ssh:ssh",
    "forward": "tunnel_client.commands.forward:forward",
    "connect": "tunnel_client.commands.connect:connect",
    "demo": "tunnel_client.commands.demo:demo",
    "version": "tunnel_client.commands.listing:version",
    "completion": "tunnel_core.cli.completion:completion",
    "man": "tunnel_core.cli.manual:man",
}


@click.group(cls=LateGroup, places=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="The bundle with your certificate.")
@version_option("qanat")
def main(bundle: Path | None) -> None:
    """Reach nodes behind NAT through a Qanat server.

    It uses the bundle that --bundle or QANAT_BUNDLE names, else the bundle in your config folder, else
    the sockets of a server on this machine.

    \b
    Examples:
      qanat status
      qanat forward edge1 8080
      qanat ssh edge1

    \b
    Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 refused by policy,
    4 node not attached, 5 server unreachable.
    """


def entry_point() -> None:
    """Run ``qanat``."""
    main(prog_name="qanat")
