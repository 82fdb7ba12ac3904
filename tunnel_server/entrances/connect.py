"""The ``connect`` entrance: HTTP/1.1 CONNECT, as kube-apiserver, curl and ``qanat`` speak it.

1. The authority names node and target. ``Host`` is ignored, because kube-apiserver always sends 127.0.0.1.
2. The 200 is sent after the agent has dialled the target, because kube-apiserver shows its user no later
   error. The sentence of a refusal is the reason phrase, the only part that kube-apiserver shows.
3. The open has a time-out here, because kube-apiserver waits for an answer without a time-out.
4. A broken user connection cancels the dial. The end of input does not cancel it, because `nc -N` shuts
   down its half right after the request. So if a TCP client closes without a reset, the dial runs until its
   deadline. The first byte that the server sends to such a client brings the reset.
5. Bytes that the user sent after the head go to the target first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from tunnel_core.http.router import CONNECT, Route, RoutedRequest, Section
from tunnel_core.http.server import HttpConnection
from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.opener import Opener, StreamRequest
from tunnel_server.access.routing import route_authority, target_header
from tunnel_server.auth.callers import USER, Caller, UserCaller

ENTRANCE = "connect"


class ConnectEntrance:
    """Answer CONNECT requests of users whose certificate is accepted."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    def section(self) -> Section[Caller]:
        """Return the route of this entrance."""
        return Section(ENTRANCE, None, USER, [Route(CONNECT, "CONNECT NODE:PORT", USER, self._connect)])

    async def _connect(self, routed: RoutedRequest, caller: UserCaller) -> None:
        """Serve one CONNECT to its end. Raises ``Refused`` only before the 200."""
        http, request = routed.http, routed.request
        target = target_header(request.headers)
        route = route_authority(request.target.decode("ascii"), self._opener.nodes, target)
        stream_request = StreamRequest(caller.user, route, ENTRANCE, caller.source)
        async with self._opener.open(stream_request) as user_stream:
            await wait_unless_user_leaves(http, user_stream.wait_opened)
            early_bytes = await http.accept_connect()
            if early_bytes:
                await user_stream.stream.send_all(early_bytes)
            await user_stream.relay(http.stream)


async def wait_unless_user_leaves(http: HttpConnection, wait: Callable[[], Awaitable[None]]) -> None:
    """Run ``wait``, and cancel it if the user breaks the connection.

    Raises the ``Refused`` of ``wait``, or ``Refused(USER_LEFT)``.
    """
    ended: Refused | None = Refused(Reason.USER_LEFT)

    async def run() -> None:
        nonlocal ended
        try:
            await wait()
            ended = None
        except Refused as refused:
            ended = refused
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await http.wait_left()
        nursery.cancel_scope.cancel()
    if ended is not None:
        try:
            raise ended
        finally:
            ended = None  # The traceback refers to this frame. That would keep the connection in a cycle.
