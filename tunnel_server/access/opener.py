"""Opening of user streams, common to all entrances: authorise, open on the node's session, relay, record.

An entrance authenticates the user and finds the route. This module does not depend on how it did so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import NamedTuple

import trio

from certs.x509 import VerifiedCertificate
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import relay
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream
from tunnel_core.telemetry.logs import StreamFacts
from tunnel_server.access.access import Access, WatchedStream
from tunnel_server.access.routing import Directory, NodeRoute
from tunnel_server.accounting.refusal_audit import record_withdrawn
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.auth.credential_watch import CredentialWatch, WatchEntry
from tunnel_server.auth.grants import Grant
from tunnel_server.auth.users import User
from tunnel_server.config import ServerConfig
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.store import Store


class StreamRequest(NamedTuple):
    """Request of an authenticated user for a stream. ``source`` is the user's address or uid.

    With ``target_tls`` the agent speaks TLS to an https service, because this server reads the user's bytes
    as plain HTTP. Without ``target_tls`` the bytes pass unchanged, because any TLS is the user's own.
    """

    user: User
    route: NodeRoute
    entrance: str
    source: str
    target_tls: bool = False


class _Readable:
    """The registry as one user sees it. Names that the user knows are found; others are not told."""

    def __init__(self, nodes: Nodes, access: Access, user: User) -> None:
        self._nodes = nodes
        self._access = access
        self._user = user

    def name_of(self, text: str) -> str | None:
        return self._nodes.name_of(text)

    def nearest(self, text: str) -> str | None:
        near = self._nodes.nearest(text)
        return near if near is not None and self._access.may_read_node(self._user, near) else None


class NotOpened(Refused):
    """Refusal of a stream to an authenticated user. The refusal is already recorded.

    ``stream_id`` is the stream's id in the log; empty if none was opened.
    """

    def __init__(self, reason: Reason, detail: str = "", stream_id: str = "") -> None:
        super().__init__(reason, detail)
        self.stream_id = stream_id


class Opener:
    """Open streams for all entrances.

    ``access`` decides, and ends the streams that lose their grant. ``credential_watch`` ends the streams of a
    user whose certificate is revoked or expires.
    ``half_closed_seconds`` is how long a half-closed stream may carry no byte; None sets no bound.
    """

    def __init__(
        self,
        nodes: Nodes,
        records: StreamRecorder,
        *,
        trust_domain: str,
        access: Access,
        credential_watch: CredentialWatch,
        half_closed_seconds: float | None = None,
    ) -> None:
        self._credential_watch = credential_watch
        self.access = access
        self.half_closed_seconds = half_closed_seconds
        self.nodes = nodes
        self.records = records
        self.trust_domain = trust_domain

    def directory_of(self, user: User) -> Directory:
        """Return the registry for names that ``user`` types. It suggests only nodes that ``user`` may read.

        A name that the user knows is found in any case, because the refusal of the grants is clearer.
        """
        return _Readable(self.nodes, self.access, user)

    def open(self, request: StreamRequest, early_data: bytes = b"") -> UserStream:
        """Return the requested stream for an ``async with`` block, and record how the stream ended.

        The block begins without waiting for the agent's dial. The stream is closed when the block ends, and
        reset when the block raises or is cancelled. The block raises ``NotOpened`` for a stream that cannot
        be opened, and if its body raises ``Refused``, with the recorded reason.
        """
        return UserStream(self, request, early_data)

    def begin(self, user_stream: UserStream, request: StreamRequest, early_data: bytes) -> TunnelStream:
        """Open the tunnelled stream of ``user_stream``. Raises ``NotOpened``. For :class:`UserStream`."""
        try:
            route = request.route
            user_stream.grant = self.access.authorise(
                request.user, request.entrance, route.node, route.target
            )
            session = self.nodes.session_of(request.route.node)
            return session.open(
                request.route.target,
                user=request.user.name,
                entrance=request.entrance,
                early_data=early_data,
                target_tls=request.target_tls,
                on_opened=user_stream.note_opened,
            )
        except Refused as refused:
            facts = _facts(request, "", str(request.route.target))
            self.records.not_opened(facts, refused, grant=user_stream.grant_id, seconds=0.0)
            raise NotOpened(refused.reason, refused.detail) from None

    def watch(
        self, certificate: VerifiedCertificate | None, end: Callable[[Refused], None]
    ) -> WatchEntry | None:
        """Call ``end`` when the certificate becomes invalid. None for a user without one."""
        return None if certificate is None else self._credential_watch.register(certificate, end)

    def watch_grant(
        self, request: StreamRequest, grant: Grant | None, end: Callable[[Refused], None]
    ) -> WatchedStream | None:
        """Call ``end`` when no grant allows the request any more. None if no grant decides it."""
        if grant is None:
            return None
        route = request.route
        return self.access.watch(request.user, request.entrance, route.node, route.target, grant, end)


def opener_of(
    config: ServerConfig,
    store: Store,
    nodes: Nodes,
    records: StreamRecorder,
    credential_watch: CredentialWatch,
) -> Opener:
    """Return the opener of a server, whose users have the grants of ``store``."""
    access = Access(
        store.access.rules,
        trust_domain=config.trust_domain,
        contact=config.access.contact,
        on_ended=partial(record_withdrawn, store.note_nowait),
    )
    return Opener(
        nodes,
        records,
        trust_domain=config.trust_domain,
        access=access,
        credential_watch=credential_watch,
        half_closed_seconds=config.session.half_closed_seconds or None,
    )


def _facts(request: StreamRequest, stream_id: str, target: str) -> StreamFacts:
    return StreamFacts(
        stream_id, request.user.name, request.route.node, target, request.entrance, request.source
    )


class UserStream:
    """One user's stream through an entrance, open inside its ``async with`` block."""

    stream: TunnelStream
    grant: Grant | None = None
    """The grant that allowed the stream; None for an entrance that its configuration grants."""

    def __init__(self, opener: Opener, request: StreamRequest, early_data: bytes) -> None:
        self._opener = opener
        self._request = request
        self._early_data = early_data
        self._requested_at = trio.current_time()
        self._entry: WatchEntry | None = None
        self._watched: WatchedStream | None = None
        self._opened: StreamFacts | None = None
        self._has_first_byte = False
        self._reason = Reason.DONE
        self._detail = ""

    async def __aenter__(self) -> UserStream:
        return self.enter()

    def enter(self) -> UserStream:
        """Open the stream, as the ``async with`` block does. The caller then calls ``leave`` once."""
        early_data, self._early_data = self._early_data, b""
        self.stream = self._opener.begin(self, self._request, early_data)
        self._entry = self._opener.watch(self._request.user.certificate, self.revoke)
        self._watched = self._opener.watch_grant(self._request, self.grant, self.revoke)
        return self

    def leave(self, error: BaseException | None = None) -> None:
        """Close the stream, or reset it because of ``error``, and record its end. Never blocks."""
        self._stop_watching()
        if error is not None:
            self.fail(error)
        elif not self.stream.is_closed:
            self.stream.close_nowait()
        self.record_end()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_watching()
        try:
            if error is not None:
                self.fail(error)
            elif not self.stream.is_closed:
                await self._close()
        finally:
            self.record_end()
        if isinstance(error, Refused):
            raise NotOpened(*self.verdict, self.stream.id) from None

    def _stop_watching(self) -> None:
        if self._entry is not None:
            self._entry.remove()
            self._entry = None  # it refers to this object: a cycle
        if self._watched is not None:
            self._watched.remove()
            self.grant = self._watched.grant  # another grant may have replaced the first
            self._watched = None

    async def _close(self) -> None:
        try:
            await self.stream.aclose()
        except BaseException as error:
            self.fail(error)
            raise

    def note_opened(self) -> None:
        """Record that the agent has dialled the target. The session calls this once."""
        self._opened = _facts(self._request, self.stream.id, self.stream.target)
        seconds = trio.current_time() - self._requested_at
        self._opener.records.opened(self._opened, seconds, self.stream.address)

    async def relay(self, user: trio.abc.Stream) -> None:
        """Copy bytes between ``user`` and the stream until both directions have ended.

        Raises only ``Cancelled``. An error of either side becomes the recorded reason.
        """
        result = await relay(
            user,
            self.stream,
            half_closed_seconds=self._opener.half_closed_seconds,
            on_first_byte=self.first_byte,
        )
        self.end(result.reason, result.detail)

    def first_byte(self) -> None:
        """Record the arrival of the target's first byte. Only the first call counts."""
        if self._has_first_byte:
            return
        self._has_first_byte = True
        seconds = trio.current_time() - self._requested_at
        self._opener.records.first_byte(self._request.entrance, seconds)

    def end(self, reason: Reason, detail: str = "") -> None:
        """Note why the stream ended. Only the first reason counts."""
        if self._reason is Reason.DONE:
            self._reason, self._detail = reason, detail

    def fail(self, error: BaseException) -> None:
        """Reset the stream because of ``error``, with the reason that belongs to the error."""
        reason, detail = reason_of(error)
        self.end(reason, detail)
        self.stream.reset(self._reason, self._detail)

    @property
    def verdict(self) -> tuple[Reason, str]:
        """Reason and sentence of the end, the same for the log, the metric and the user."""
        return self._reason, self._detail

    @property
    def grant_id(self) -> str:
        """The id of the grant that allowed the stream; empty if no grant decided it."""
        return self.grant.id if self.grant is not None else ""

    def revoke(self, refused: Refused) -> None:
        """Reset the stream at once, because the user's certificate or grant is no longer accepted."""
        self.end(refused.reason, refused.detail)
        self.stream.reset(refused.reason, refused.detail)

    def record_end(self) -> None:
        """Log the end of the stream, or its refusal if the agent never dialled, and count it."""
        records, seconds = self._opener.records, trio.current_time() - self._requested_at
        if self._opened is None:
            facts = _facts(self._request, self.stream.id, self.stream.target)
            records.not_opened(
                facts, Refused(self._reason, self._detail), grant=self.grant_id, seconds=seconds
            )
            return
        records.closed(
            self._opened,
            (self._reason, self._detail),
            grant=self.grant_id,
            address=self.stream.address,
            seconds=seconds,
            bytes_to_target=self.stream.bytes_out,
            bytes_to_user=self.stream.bytes_in,
        )


def reason_of(error: BaseException) -> tuple[Reason, str]:
    """Return the reason and sentence for an exception that ended a stream.

    A group has the reason of its most severe error: the cause, not the cancellations that followed from it.
    """
    if isinstance(error, Refused | StreamReset):
        return error.reason, error.detail
    if isinstance(error, trio.Cancelled):
        return Reason.SERVER_STOPPING, ""
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return Reason.USER_LEFT, ""
    if isinstance(error, BaseExceptionGroup):
        return min((reason_of(inner) for inner in error.exceptions), key=_severity)
    return Reason.INTERNAL_ERROR, str(error)


def _severity(verdict: tuple[Reason, str]) -> int:
    """Sort key that puts the cause before the cancellations and broken connections that it brought about."""
    return {Reason.SERVER_STOPPING: 2, Reason.USER_LEFT: 1}.get(verdict[0], 0)
