"""One tunnelled connection: CONNECT to the server, which answers 200 once the agent has dialled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import trio

from tunnel_client.api import broken_connection
from tunnel_client.dial import Dialer, ServerUnreachable
from tunnel_core.http.api_client import ACCEPT_JSON, refusal_of
from tunnel_core.http.server import HttpClientConnection
from tunnel_core.identity import Role, why_no_name
from tunnel_core.names import LOOPBACK, Target, is_node_name, join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import abort

_ANSWER_SECONDS = 60.0
"""Above any usual ``open_timeout_seconds`` of the server, because the server's refusal has more detail."""
_MAX_REFUSAL_BYTES = 64 * 1024
_ANY_PORT = 1


@dataclass(frozen=True, slots=True)
class TunnelRequest:
    """Request for a tunnel: a node by name or alias, and the target that its agent dials."""

    node: str
    target: Target

    @classmethod
    def parse(cls, node: str, target: str) -> TunnelRequest:
        """Parse the user's input. A bare port is a port of the node itself. Raises ``ValueError``."""
        if not is_node_name(node):
            raise ValueError(why_no_name(Role.NODE, node))
        is_port = target.isascii() and target.isdigit()
        return cls(node, Target.parse(f"{LOOPBACK}:{target}" if is_port else target))

    @property
    def authority(self) -> str:
        """CONNECT authority. Its port has a meaning only for a target on the node itself."""
        return join_host_port(self.node, self.target.port if self.target.host == LOOPBACK else _ANY_PORT)

    def __str__(self) -> str:
        return f"{self.node} {self.target}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """An open tunnel. ``first_bytes`` are the target's first bytes, which came with the server's answer."""

    stream: trio.abc.HalfCloseableStream
    first_bytes: bytes


@asynccontextmanager
async def open_tunnel(dialer: Dialer, request: TunnelRequest) -> AsyncIterator[Tunnel]:
    """Open a tunnel. The end of the block aborts it unless it is closed, also after cancellation.

    Raises ``Refused`` or ``ServerUnreachable``.
    """
    stream = await dialer.dial()
    try:
        yield Tunnel(stream, await _connect(stream, dialer.name, request))
    finally:
        abort(stream, Reason.USER_LEFT)
        await trio.aclose_forcefully(stream)


async def _connect(stream: trio.abc.HalfCloseableStream, name: str, request: TunnelRequest) -> bytes:
    connection = HttpClientConnection(stream, peer=name)
    try:
        with trio.fail_after(_ANSWER_SECONDS):
            return await _request(connection, name, request)
    except trio.TooSlowError:
        raise ServerUnreachable(f"{name} did not answer within {_ANSWER_SECONDS:g} s") from None
    except trio.BrokenResourceError as error:
        raise broken_connection(name, error) from None


async def _request(connection: HttpClientConnection, name: str, request: TunnelRequest) -> bytes:
    # With the target in a header, the authority always names a node, and never a service of a shorter name.
    # The header is UTF-8, because the path of a unix socket may have non-ASCII letters.
    fields = [("host", request.authority), ("qanat-target", str(request.target)), ACCEPT_JSON]
    headers = [(name.encode(), value.encode()) for name, value in fields]
    head = h11.Request(method="CONNECT", target=request.authority, headers=headers)
    await connection.send(head, h11.EndOfMessage())
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
        pass  # The head alone is enough for a message.
    return bytes(collected)
