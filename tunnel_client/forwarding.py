"""``forward``: a local port. Each connection to it becomes a tunnel to one target of one node."""

from __future__ import annotations

import socket

import trio

from tunnel_client.dial import Dialer, PacedDialer, ServerUnreachable
from tunnel_client.failure_lines import FailureLines, Report
from tunnel_client.tunnel import TunnelRequest, open_tunnel
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import relay
from tunnel_core.streams.sockets import SocketStream

MAX_CONNECTIONS = 1024
"""Connections of one ``qanat forward``. Each takes two descriptors and some 100 KiB at the server and the
agent."""
_DESCRIPTORS_EACH, _OTHER_DESCRIPTORS = 2, 32
_BACKLOG = 1024
_UNREACHABLE = "server_unreachable"


def connections_for(descriptors: int, wanted: int) -> int:
    """Return the number of connections, at most ``wanted``, for which ``descriptors`` suffice."""
    return max(1, min(wanted, (descriptors - _OTHER_DESCRIPTORS) // _DESCRIPTORS_EACH))


async def listen(host: str, port: int) -> trio.SocketListener:
    """Listen on one address. With port 0 the kernel chooses a port. Raises ``OSError``."""
    [(family, kind, protocol, _, address), *_] = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sock = trio.socket.socket(family, kind, protocol)
    try:
        # Without SO_REUSEADDR a restart within a minute fails, because ended connections still use the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


async def forward(
    listener: trio.SocketListener,
    dialer: Dialer,
    request: TunnelRequest,
    report: Report,
    max_connections: int = MAX_CONNECTIONS,
) -> None:
    """Serve until cancelled. Cancellation resets all open connections.

    A connection that fails is reset and reported. A connection above ``max_connections`` is reset at once,
    because a connection that waits looks like a target that hangs.
    """
    lines, paced, open_now = FailureLines(report), PacedDialer(dialer), 0

    async def serve(accepted: trio.SocketStream) -> None:
        nonlocal open_now
        local = SocketStream.adopt(accepted)
        if open_now >= max_connections:
            local.abort()
            text = (
                f"{max_connections} connections are open, the limit (--max-connections); one more was reset"
            )
            lines.note(Reason.TOO_MANY_CONNECTIONS.word, text)
            return
        open_now += 1
        try:
            await forward_one(local, paced, request, lines)
        finally:
            open_now -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.run)
        await trio.serve_listeners(serve, [listener])


async def forward_one(
    local: SocketStream, dialer: Dialer, request: TunnelRequest, lines: FailureLines
) -> None:
    """Serve one accepted connection to its end."""
    try:
        async with open_tunnel(dialer, request) as tunnel:
            if tunnel.first_bytes:
                await local.send_all(tunnel.first_bytes)
            await relay(local, tunnel.stream)
    except Refused as refused:
        lines.note(refused.reason.word, refused.detail)
    except ServerUnreachable as error:
        lines.note(_UNREACHABLE, str(error))
    except trio.BrokenResourceError:
        pass  # The local program closed its connection before the target's first bytes.
    finally:
        local.abort()
