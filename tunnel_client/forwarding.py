"""``forward``: a local port whose every connection becomes a tunnel to one target of one node."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from tunnel_client.dial import Dialer, ServerUnreachable
from tunnel_client.tunnel import Wish, open_tunnel
from tunnel_core.reasons import Refused
from tunnel_core.relay import relay
from tunnel_core.sockets import SocketStream

_MAX_CONNECTIONS = 100
"""Each takes two descriptors, and a Mac gives a process 256."""
_BACKLOG = 128

Report = Callable[[str], None]


async def listen(host: str, port: int) -> trio.SocketListener:
    """A listener on one address; port 0 lets the kernel choose. Raises ``OSError``."""
    [(family, kind, protocol, _, address), *_] = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sock = trio.socket.socket(family, kind, protocol)
    try:
        # Else a restart within a minute finds the port taken by connections that have ended.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


async def forward(listener: trio.SocketListener, dialer: Dialer, wish: Wish, report: Report) -> None:
    """Serves until cancelled. A connection that fails is aborted and reported; others go on."""
    slots = trio.Semaphore(_MAX_CONNECTIONS)

    async def serve(accepted: trio.SocketStream) -> None:
        try:
            await forward_one(SocketStream.adopt(accepted), dialer, wish, report)
        finally:
            slots.release()

    await trio.serve_listeners(serve, [_BoundedListener(listener, slots)])


async def forward_one(local: SocketStream, dialer: Dialer, wish: Wish, report: Report) -> None:
    """One connection from its accept to its end."""
    try:
        async with open_tunnel(dialer, wish) as tunnel:
            if tunnel.first_bytes:
                await local.send_all(tunnel.first_bytes)
            await relay(local, tunnel.stream)
    except (Refused, ServerUnreachable) as error:
        report(error.detail if isinstance(error, Refused) else str(error))
    except trio.BrokenResourceError:
        pass  # the local program left before the target's first bytes
    finally:
        local.abort()


class _BoundedListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts when there is a free slot; further connections wait in the kernel's backlog."""

    def __init__(self, inner: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._inner = inner
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        await self._slots.acquire()
        try:
            return await self._inner.accept()
        except BaseException:
            self._slots.release()
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()
