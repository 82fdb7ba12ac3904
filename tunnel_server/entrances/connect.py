"""The ``connect`` entrance: HTTP/1.1 CONNECT, as kube-apiserver, curl and ``qanat`` speak it.

1. The authority names node and target. ``Host`` is ignored: kube-apiserver sends 127.0.0.1 always.
2. 200 comes only after the far dial succeeded, because kube-apiserver shows its user nothing that comes
   later; a refusal's sentence is the reason phrase, because that is all that it shows of an answer.
3. It waits for an answer without a time-out of its own, so the open has one here.
4. A user who breaks the connection during the dial cancels it. The end of input does not: `nc -N` ends its
   half right behind the request. A TCP client that closes without a reset therefore costs the dial until
   its own deadline; the first byte that is sent to it brings the reset.
5. What the user sent behind the head goes to the target before anything else.
"""

from __future__ import annotations

from tunnel_core.http.router import CONNECT, Route, RoutedRequest, Section
from tunnel_server.access.opener import Opener, StreamRequest
from tunnel_server.access.routing import route_authority, target_header
from tunnel_server.auth.callers import USER, Caller, UserCaller

ENTRANCE = "connect"


class ConnectEntrance:
    """Answers CONNECT requests of users in good standing."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    def section(self) -> Section[Caller]:
        """Return the route of this entrance."""
        return Section(ENTRANCE, None, USER, [Route(CONNECT, "CONNECT NODE:PORT", USER, self._connect)])

    async def _connect(self, routed: RoutedRequest, caller: UserCaller) -> None:
        """Serve one CONNECT to its end. Raises ``Refused`` before the 200, and only then."""
        http, request = routed.http, routed.request
        target = target_header(request.headers)
        route = route_authority(request.target.decode("ascii"), self._opener.nodes, target)
        async with self._opener.open(StreamRequest(caller.user, route, ENTRANCE, caller.source)) as passage:
            await passage.stream.wait_opened(http.wait_left)
            over_read = await http.accept_connect()
            if over_read:
                await passage.stream.send_all(over_read)
            await passage.relay(http.stream)
