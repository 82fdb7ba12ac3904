"""The steps that every entrance ends in: authorise, open on the node's link, relay, write it down.

An entrance brings who the user is and what the route is; nothing here knows how either was told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import relay
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream
from tunnel_core.telemetry.logs import StreamFacts
from tunnel_server.access.policy import authorise
from tunnel_server.access.routing import NodeRoute
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.users import User
from tunnel_server.nodes.registry import Nodes


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What an authenticated user wants to reach, and how he came: ``source`` is his address or uid.

    ``target_tls``: this server reads the user's bytes as HTTP, so the agent speaks TLS to an https service.
    Without it the bytes pass as they are, because the TLS is the user's own.
    """

    user: User
    route: NodeRoute
    entrance: str
    source: str
    target_tls: bool = False


class NotOpened(Refused):
    """An authenticated user was refused a stream, and that is written down already."""


class Opener:
    """Opens streams for all entrances. ``standing`` ends those whose user has to go.

    ``half_closed_seconds``: as ``relay`` takes it.
    """

    def __init__(
        self,
        nodes: Nodes,
        records: StreamRecorder,
        *,
        trust_domain: str,
        standing: CredentialWatch,
        half_closed_seconds: float | None = None,
    ) -> None:
        self._standing = standing
        self.half_closed_seconds = half_closed_seconds
        self.nodes = nodes
        self.records = records
        self.trust_domain = trust_domain

    @asynccontextmanager
    async def open(self, wish: StreamRequest, early_data: bytes = b"") -> AsyncIterator[UserStream]:
        """A stream to what is wished, before the far dial is answered; writes down how it ended.

        Raises ``NotOpened``, also for a ``Refused`` of the block, with the reason that is written down. The
        stream is closed when the block ends, and reset when it raises.
        """
        user_stream = UserStream(self, wish)
        self._begin(user_stream, wish, early_data)
        certificate = wish.user.certificate
        entry = self._standing.register(certificate, user_stream.revoke) if certificate is not None else None
        try:
            try:
                yield user_stream
            finally:
                if entry is not None:
                    entry.remove()
            await user_stream.stream.aclose()
        except Refused as refused:
            user_stream.fail(refused)
            raise NotOpened(*user_stream.verdict) from None
        except BaseException as error:
            user_stream.fail(error)
            raise
        finally:
            user_stream.record_end()

    def _begin(self, user_stream: UserStream, wish: StreamRequest, early_data: bytes) -> None:
        try:
            authorise(wish.user, wish.route, self.trust_domain)
            link = self.nodes.session_of(wish.route.node)
            user_stream.stream = link.open(
                wish.route.target,
                user=wish.user.name,
                entrance=wish.entrance,
                early_data=early_data,
                target_tls=wish.target_tls,
                on_opened=user_stream.note_opened,
            )
        except Refused as refused:
            self.records.not_opened(_facts(wish, "", str(wish.route.target)), refused)
            raise NotOpened(refused.reason, refused.detail) from None


def _facts(wish: StreamRequest, stream_id: str, target: str) -> StreamFacts:
    return StreamFacts(stream_id, wish.user.name, wish.route.node, target, wish.entrance, wish.source)


class UserStream:
    """One stream on its way through an entrance. ``stream`` is there once the opener began."""

    stream: TunnelStream

    def __init__(self, opener: Opener, wish: StreamRequest) -> None:
        self._opener = opener
        self._wish = wish
        self._asked_at = trio.current_time()
        self._opened: StreamFacts | None = None
        self._spoke = False
        self._reason = Reason.DONE
        self._detail = ""

    def note_opened(self) -> None:
        """The far dial succeeded: called by the link, once."""
        self._opened = _facts(self._wish, self.stream.id, self.stream.target)
        seconds = trio.current_time() - self._asked_at
        self._opener.records.opened(self._opened, seconds, self.stream.address)

    async def relay(self, user: trio.abc.Stream) -> None:
        """Joins the user's side and the stream until both have ended. Raises nothing of its own."""
        result = await relay(
            user,
            self.stream,
            half_closed_seconds=self._opener.half_closed_seconds,
            on_first_byte=self.first_byte,
        )
        self.end(result.reason, result.detail)

    def first_byte(self) -> None:
        """The target's first byte is here. Only the first call counts."""
        if self._spoke:
            return
        self._spoke = True
        seconds = trio.current_time() - self._asked_at
        self._opener.records.first_byte(self._wish.entrance, seconds)

    def end(self, reason: Reason, detail: str = "") -> None:
        """Notes how it ended; the first word counts."""
        if self._reason is Reason.DONE:
            self._reason, self._detail = reason, detail

    def fail(self, error: BaseException) -> None:
        """Notes the end by an exception and resets the stream with its reason."""
        reason, detail = reason_of(error)
        self.end(reason, detail)
        self.stream.reset(self._reason, self._detail)

    @property
    def verdict(self) -> tuple[Reason, str]:
        """Why it ended, and the sentence: the same for the log, the metric and the user."""
        return self._reason, self._detail

    def revoke(self, refused: Refused) -> None:
        """Its user has to go: both sides are broken off at once, the user's too."""
        self.end(refused.reason, refused.detail)
        self.stream.reset(refused.reason, refused.detail)

    def record_end(self) -> None:
        """The line and the counts of the end."""
        records = self._opener.records
        if self._opened is None:
            facts = _facts(self._wish, self.stream.id, self.stream.target)
            records.not_opened(facts, Refused(self._reason, self._detail))
            return
        records.closed(
            self._opened,
            (self._reason, self._detail),
            seconds=trio.current_time() - self._asked_at,
            bytes_to_target=self.stream.bytes_out,
            bytes_to_user=self.stream.bytes_in,
        )


def reason_of(error: BaseException) -> tuple[Reason, str]:
    """The reason behind an exception that ended a stream."""
    if isinstance(error, Refused | StreamReset):
        return error.reason, error.detail
    if isinstance(error, trio.Cancelled):
        return Reason.SERVER_STOPPING, ""
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return Reason.USER_LEFT, ""
    if isinstance(error, BaseExceptionGroup):
        return min((reason_of(inner) for inner in error.exceptions), key=_severity)
    return Reason.INTERNAL_ERROR, str(error)


def _severity(blamed: tuple[Reason, str]) -> int:
    """In a group the cause stands beside the cancellations and breaks that it brought about."""
    return {Reason.SERVER_STOPPING: 2, Reason.USER_LEFT: 1}.get(blamed[0], 0)
