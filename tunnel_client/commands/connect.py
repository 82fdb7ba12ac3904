"""``qanat connect``: one tunnel on standard input and output."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel_client.commands.names import complete_node, complete_target
from tunnel_client.commands.options import access, bundle_option, parse_request, run
from tunnel_client.dial import Dialer
from tunnel_client.stdio import take_stdio
from tunnel_client.tunnel import TunnelRequest, open_tunnel
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.reasons import Reason
from tunnel_core.streams.relay import RelayResult, relay


@click.command("connect")
@click.argument("node", shell_complete=complete_node)
@click.argument("target", shell_complete=complete_target)
@bundle_option
def connect(node: str, target: str, bundle: Path | None) -> None:
    """Join standard input and output to TARGET on NODE, for ssh's ProxyCommand and the like.

    TARGET is a port of the node, host:port, [v6]:port, unix:/path, or a service's name.

    \b
    Examples:
      ssh -o ProxyCommand='qanat connect %h %p' edge1
      scp -o ProxyCommand='qanat connect edge1 22' image.tar edge1:
      qanat connect edge1 unix:/run/docker.sock < request
    """
    request = parse_request(node, target)
    dialer = access(bundle).need_connect()
    result = run(_connect, dialer, request)
    if result.reason is not Reason.DONE:
        message = f"the connection to {request} broke: {result.detail or result.reason.meaning}"
        raise CommandError(ExitCode.FAILED, message)


async def _connect(dialer: Dialer, request: TunnelRequest) -> RelayResult:
    async with open_tunnel(dialer, request) as tunnel:
        local = take_stdio()  # After the tunnel is open, so that a refusal loses no input.
        await local.send_all(tunnel.first_bytes)
        return await relay(local, tunnel.stream)
