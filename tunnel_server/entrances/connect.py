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

from tunnel_core.http.router import CONNECT, Route, RoutedRequest, Section
from tunnel_server.access.opener import Opener, StreamRequest
from tunnel_server.access.routing import route_authority, target_header
from tunnel_server.auth.callers import USER, Caller, UserCaller

ENTRANCE = "connect"


class ConnectEntrance:
    """Answer CONNECT requests of authenticated users."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    def section(self) -> Section[Caller]:
        """Return the route of this entrance."""
        return Section(ENTRANCE, None, USER, [Route(CONNECT, "CONNECT NODE:PORT", USER, self._connect)])

    async def _connect(self, routed: RoutedRequest, caller: UserCaller) -> None:
        """Serve one CONNECT to its end. Raises ``Refused`` only before the 200."""
        http, request = routed.http, routed.request
        target = target_header(request.headers)
        route = route_authority(
            request.target.decode("ascii"), self._opener.directory_of(caller.user), target
        )
        stream_request = StreamRequest(caller.user, route, ENTRANCE, caller.source)
        async with self._opener.open(stream_request) as user_stream:
            await user_stream.stream.wait_opened(http.wait_left)
            early_bytes = await http.accept_connect()
            if early_bytes:
                await user_stream.stream.send_all(early_bytes)
            await user_stream.relay(http.stream)
