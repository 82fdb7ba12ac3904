"""HTTP connections of one listener: identify the user of the connection, and route its requests.

The HTTPS listener, the connect socket and the admin socket share this code and differ in their routes. The
user is identified once for a connection, by the verified client certificate or by the peer of the unix
socket. A connection without a user is served too, because some routes need no user.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import h11

from tunnel_core.http.router import Router, Section
from tunnel_core.http.server import HeadLimits, HttpConnection, serve_http
from tunnel_core.kept_errors import without_frames
from tunnel_core.reasons import Refused
from tunnel_server.access.opener import NotOpened
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.auth.callers import USER, Caller
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.identify import Identify
from tunnel_server.auth.users import User
from tunnel_server.entrances.est import ENTRANCE as EST
from tunnel_server.listeners.listener import AcceptedConnection
from tunnel_server.listeners.user_connections import UserConnections
from tunnel_server.reverse_proxy.headers import refuse_cross_site

STRANGER_IDLE_SECONDS = 5.0
"""Time between requests of a connection without a user's certificate. A client that wants a certificate sends
its few requests one right after the other."""


class HttpsEntrance:
    """One HTTP listener. ``sections`` are its routes. Only users learn whether another path exists.

    ``users`` bounds the connections of each user. It is None where a file mode restricts access.
    ``credential_watch`` checks at each request that the user's certificate is still accepted.
    """

    def __init__(
        self,
        entrance: str,
        sections: Iterable[Section[Caller]],
        *,
        identify: Identify,
        credential_watch: CredentialWatch,
        records: StreamRecorder,
        limits: HeadLimits,
        users: UserConnections | None,
    ) -> None:
        self._entrance = entrance
        self._router = Router([*sections, Section(entrance, "", USER, ())])
        self._identify = identify
        self._credential_watch = credential_watch
        self._records = records
        self._limits = limits
        self._users = users

    async def serve(self, accepted: AcceptedConnection) -> None:
        """Serve one connection to its end."""
        identity, limits = self._identity_of(accepted), self._limits
        if isinstance(identity, Refused):
            limits = replace(limits, idle_seconds=min(limits.idle_seconds, STRANGER_IDLE_SECONDS))
        caller = Caller(accepted, identity, self._credential_watch)
        requests = _Requests(self._entrance, self._router, self._records, caller)
        try:
            await serve_http(
                accepted.stream, requests.handle, limits, on_refused=requests.refused, turns=accepted.turns
            )
        finally:
            if self._users is not None and isinstance(identity, User):
                self._users.remove(identity.name)

    def _identity_of(self, accepted: AcceptedConnection) -> User | Refused:
        """Return the user, or the refusal for the answer to the first request.

        A refusal in an HTTP answer is readable, unlike a TLS alert. The refusal has no traceback, because the
        traceback's frames refer to the connection and so back to the refusal. That cycle would keep the
        connection's memory until the garbage collector runs, which stops all tasks.
        """
        try:
            user = self._identify(accepted)
            if self._users is not None:
                self._users.add(user.name)  # A connection above the limit is served without a user.
        except Refused as refused:
            return without_frames(refused)
        accepted.ticket.authenticated()
        return user


class _Requests:
    """The requests of one connection."""

    def __init__(
        self, entrance: str, router: Router[Caller], records: StreamRecorder, caller: Caller
    ) -> None:
        self._entrance = entrance
        self._router = router
        self._records = records
        self._caller = caller
        self._section = entrance  # Section of the latest request.

    async def handle(self, http: HttpConnection, request: h11.Request) -> None:
        """Answer one request. Raises ``Refused``."""
        self._section = self._entrance
        self._caller.accepted.ticket.progressed()
        refuse_cross_site(
            request.method, request.headers
        )  # A browser presents its user's certificate for any page.
        match = self._router.find(request)
        self._section = match.section.name
        await self._router.answer(match, http, request, self._caller)

    def refused(self, refused: Refused) -> None:
        """Record a refused request."""
        source, identity = self._caller.accepted.source, self._caller.identity
        if isinstance(identity, Refused):
            self._caller.accepted.ticket.refused()
        if self._section == EST:
            # The enrolment has already recorded the refusal of an authenticated requester.
            self._records.refused(EST, source, refused, in_audit=bool(refused.who))
        elif isinstance(identity, Refused):
            self._records.refused(self._entrance, source, refused)
        elif not isinstance(refused, NotOpened):
            self._records.request_refused(self._entrance, identity.name, source, refused)
