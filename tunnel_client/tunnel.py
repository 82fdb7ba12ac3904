"""One tunnelled connection: CONNECT to the server, which answers 200 when the far dial has succeeded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import trio

from tunnel_client.api import broken_off
from tunnel_client.dial import Dialer, ServerUnreachable
from tunnel_core.http.api_client import ACCEPT_JSON, refusal_of
from tunnel_core.http.server import HttpClientConnection
from tunnel_core.identity import Role, why_no_name
from tunnel_core.names import LOOPBACK, Target, is_node_name, join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import abort

_ANSWER_SECONDS = 60.0
"""Above any sensible ``open_timeout_seconds`` of the server, whose refusal says more than ours."""
_MAX_REFUSAL_BYTES = 64 * 1024
_ANY_PORT = 1


@dataclass(frozen=True, slots=True)
class TunnelRequest:
    """Where a user wants to go: a node by name or alias, and what its agent is to dial."""

    node: str
    target: Target

    @classmethod
    def parse(cls, node: str, target: str) -> TunnelRequest:
        """Reads what people type; a bare port means that port on the node itself. Raises ``ValueError``."""
        if not is_node_name(node):
            raise ValueError(why_no_name(Role.NODE, node))
        is_port = target.isascii() and target.isdigit()
        return cls(node, Target.parse(f"{LOOPBACK}:{target}" if is_port else target))

    @property
    def authority(self) -> str:
        """The CONNECT authority; its port counts only for a target on the node itself."""
        return join_host_port(self.node, self.target.port if self.target.host == LOOPBACK else _ANY_PORT)

    def __str__(self) -> str:
        return f"{self.node} {self.target}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """An open tunnel. ``first_bytes`` came with the answer and are the target's own."""

    stream: trio.abc.HalfCloseableStream
    first_bytes: bytes


@asynccontextmanager
async def open_tunnel(dialer: Dialer, wish: TunnelRequest) -> AsyncIterator[Tunnel]:
    """A tunnel, aborted on the way out unless it was closed. Raises ``Refused`` or ``ServerUnreachable``."""
    stream = await dialer.dial()
    try:
        yield Tunnel(stream, await _connect(stream, dialer.name, wish))
    finally:
        abort(stream, Reason.USER_LEFT)
        await trio.aclose_forcefully(stream)


async def _connect(stream: trio.abc.HalfCloseableStream, name: str, wish: TunnelRequest) -> bytes:
    connection = HttpClientConnection(stream, peer=name)
    try:
        with trio.fail_after(_ANSWER_SECONDS):
            return await _request(connection, name, wish)
    except trio.TooSlowError:
        raise ServerUnreachable(f"{name} did not answer within {_ANSWER_SECONDS:g} s") from None
    except trio.BrokenResourceError as error:
        raise broken_off(name, error) from None


async def _request(connection: HttpClientConnection, name: str, wish: TunnelRequest) -> bytes:
    # With the target in a header the authority can only mean a node, never a service of a shorter name.
    # The header is UTF-8: the path of a unix socket may have other than ASCII letters.
    fields = [("host", wish.authority), ("qanat-target", str(wish.target)), ACCEPT_JSON]
    headers = [(name.encode(), value.encode()) for name, value in fields]
    request = h11.Request(method="CONNECT", target=wish.authority, headers=headers)
    await connection.send(request, h11.EndOfMessage())
    response = await connection.receive_response()
    if response.status_code != 200:
        raise refusal_of(response, await _body(connection), name)
    return connection.switch()


async def _body(connection: HttpClientConnection) -> bytes:
    collected = bytearray()
    try:
        async for chunk in connection.receive_body():
            collected += chunk
            if len(collected) > _MAX_REFUSAL_BYTES:
                break
    except (Refused, trio.BrokenResourceError):
        pass  # the head has said enough
    return bytes(collected)
