"""HTTP connections whose user is known from the connection: who is there, and what he wants.

The HTTPS listener, the connect socket and the admin socket are this with other parts: the user comes
from the proven client certificate or from the peer of the unix socket, once for the connection. Only
the paths of ``est`` are open to those who are nobody yet, or no user.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import h11

from certs.x509 import IdentityError, Usage, proven_leaf
from tunnel_core.http import HeadLimits, HttpConnection, serve_http
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.tls import TlsStream
from tunnel_server.entrances.admin import PATH as ADMIN_PATH
from tunnel_server.entrances.admin import AdminEntrance
from tunnel_server.entrances.api import ROOT, ApiEntrance
from tunnel_server.entrances.connect import ConnectEntrance
from tunnel_server.entrances.est import ENTRANCE as EST
from tunnel_server.entrances.est import EstEntrance
from tunnel_server.heads import refuse_cross_site
from tunnel_server.listeners import Accepted
from tunnel_server.opening import NotOpened
from tunnel_server.policy import User, user_of, why_no_user
from tunnel_server.records import Records
from tunnel_server.standing import Standing
from tunnel_server.user_connections import UserConnections

STRANGER_IDLE_SECONDS = 5.0
"""Between requests of a connection without a user's certificate. A client that wants a certificate sends its
few requests one right after the other."""

Identify: TypeAlias = Callable[[Accepted], User]
"""Says who is there, or raises ``Refused``."""


@dataclass(frozen=True, slots=True)
class Front:
    """One kind of HTTP listener. ``connect``, ``api``, ``admin`` and ``est`` may be missing."""

    entrance: str
    identify: Identify
    records: Records
    limits: HeadLimits
    connect: ConnectEntrance | None = None
    api: ApiEntrance | None = None
    est: EstEntrance | None = None
    admin: AdminEntrance | None = None
    standing: Standing = field(default_factory=Standing)
    users: UserConnections | None = None
    """Bounds the connections of each user; None where the file's mode says who comes in."""

    async def serve(self, accepted: Accepted) -> None:
        """Serves one connection to its end."""
        user = self._who(accepted)
        try:
            await self._serve(accepted, user)
        finally:
            if self.users is not None and isinstance(user, User):
                self.users.remove(user.name)

    async def _serve(self, accepted: Accepted, user: User | Refused) -> None:
        entrance = self.entrance

        async def handle(http: HttpConnection, request: h11.Request) -> None:
            nonlocal entrance
            entrance = self.entrance
            accepted.ticket.progressed()
            refuse_cross_site(request)  # a browser shows its user's certificate for any page
            if self.est is not None and self.est.answers(request):
                entrance = EST
                await self.est.handle(http, request, accepted)
                return
            if isinstance(user, Refused):
                raise copy.copy(user)  # the one that is kept gets no traceback: see _who
            self.standing.require(user.proven)
            await self._dispatch(http, request, user, accepted.source)

        def note(refused: Refused) -> None:
            if isinstance(user, Refused):
                accepted.ticket.refused()
            if entrance == EST:
                # Of a requester who has proven itself, the enrolment has written it down.
                self.records.refused(EST, accepted.source, refused, in_audit=bool(refused.who))
            elif isinstance(user, Refused):
                self.records.refused(self.entrance, accepted.source, refused)
            elif not isinstance(refused, NotOpened):
                self.records.request_refused(self.entrance, user.name, accepted.source, refused)

        limits = self.limits
        if isinstance(user, Refused):
            limits = replace(limits, idle_seconds=min(limits.idle_seconds, STRANGER_IDLE_SECONDS))
        await serve_http(accepted.stream, handle, limits, on_refused=note, turns=accepted.turns)

    def _who(self, accepted: Accepted) -> User | Refused:
        """The refusal is kept for the answer to the first request: only that can be read by a person.

        Without its traceback, whose frames lead to the connection and back to the refusal: such a circle
        keeps the connection's memory until the garbage collector comes, which stops everybody.
        """
        try:
            user = self.identify(accepted)
            if self.users is not None:
                self.users.add(user.name)  # one too many stays among those that are not known
        except Refused as refused:
            return refused.with_traceback(None)
        accepted.ticket.authenticated()
        return user

    async def _dispatch(self, http: HttpConnection, request: h11.Request, user: User, source: str) -> None:
        if request.method == b"CONNECT":
            if self.connect is None:
                raise Refused(Reason.METHOD_NOT_ALLOWED, "CONNECT is switched off here")
            await self.connect.handle(http, request, user, source)
        elif self.admin is not None and request.target.startswith(ADMIN_PATH.encode()):
            await self.admin.handle(http, request, user)
        elif self.api is not None and request.target.startswith(ROOT.encode()):
            with self.standing.ending(user.proven):
                await self.api.handle(http, request, user.name)
        else:
            raise Refused(Reason.NOT_FOUND, self._what_there_is())

    def _what_there_is(self) -> str:
        kinds = [
            *(["CONNECT NODE:PORT"] if self.connect else []),
            *(["GET /api/v1/nodes"] if self.api else []),
        ]
        return f"there is nothing at this path; this listener answers {' and '.join(kinds)}"


def by_certificate(trust_domain: str) -> Identify:
    """The user of the client certificate that the handshake has proven."""

    def identify(accepted: Accepted) -> User:
        assert isinstance(accepted.stream, TlsStream)
        leaf = accepted.stream.peer_certificate()
        if not leaf:
            raise Refused(
                Reason.UNAUTHENTICATED,
                "no client certificate was shown; get one with `qanat-server issue user NAME` "
                "and use it (curl: --proxy-cert, --cert)",
            )
        proven = proven_leaf(leaf, usage=Usage.CLIENT)
        user = user_of(proven)
        refused = why_no_user(user, trust_domain)
        if refused is not None:
            raise IdentityError.of(proven, refused)
        return user

    return identify


def by_peer(peers: Mapping[int, str], trust_domain: str) -> Identify:
    """The user that the configuration names for the user id at the other end of the unix socket."""

    def identify(accepted: Accepted) -> User:
        uid = accepted.uid
        if uid is None or uid not in peers:
            raise Refused(
                Reason.UNAUTHENTICATED,
                f"user id {uid} is not known here; add to the server's configuration: "
                f'[[connect.unix.peer]] uid = {uid}, user = "NAME"',
            )
        return User(peers[uid], Role.USER, trust_domain)

    return identify


def by_file_mode(trust_domain: str) -> Identify:
    """Anybody whom the mode of the unix socket lets in, named by the user id."""

    def identify(accepted: Accepted) -> User:
        return User(f"uid-{accepted.uid}", Role.USER, trust_domain)

    return identify
