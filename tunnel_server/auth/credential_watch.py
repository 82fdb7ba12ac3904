"""Who is in by which certificate, and who has to go because it is not good any more.

1. TLS looks at a certificate once, in the handshake. Whatever lives on behind that, a session, a stream, an
   answer that waits, is entered here together with what ends it.
2. A certificate stops being good when it, or its name, is revoked; when its life is over; when its root is
   retired. The first and the last are told from outside and looked for at once, in everything that is
   entered. Lives are watched by one timer. Nothing is asked for a byte or a packet.
3. A session goes by the certificate that the carrier of the moment has proven (``WatchEntry.renew``), so an
   agent that renews in time never meets the end of a life. A user's stream has one connection, and ends with
   it.
4. What comes in anew, a request on a connection that was kept alive too, asks ``require`` first.

For the trio thread. It knows nothing of what it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio

from certs.x509 import IdentityError, VerifiedCertificate
from tunnel_core.humanize import as_moment
from tunnel_core.identity import SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import Revocation, RevocationList, refusal

ALLOWANCE = timedelta(seconds=5)
"""Time by which a session or a stream may outlive its certificate. A renewal that is under way is not cut off
at its last step."""
_NEVER = datetime.max.replace(tzinfo=UTC)
_LOOK_SECONDS = 60.0
"""However far the next end is: this machine's clock may be set meanwhile."""


@dataclass(slots=True, eq=False)
class WatchEntry:
    """Something that lives by a certificate. ``end`` must not block or raise, and is called once."""

    proven: VerifiedCertificate
    end: Callable[[Refused], None]
    standing: CredentialWatch

    def renew(self, proven: VerifiedCertificate) -> None:
        """It lives by another certificate of the same identity from here on."""
        self.proven = proven
        self.standing.look_by(proven)

    def leave(self) -> None:
        """It ended by itself. Idempotent."""
        self.standing.forget(self)


@dataclass(frozen=True, slots=True)
class CredentialEnded:
    """What had to go with one certificate: ``count`` sessions, streams or answers."""

    proven: VerifiedCertificate
    refused: Refused
    count: int


class CredentialWatch:
    """``revoked`` says which certificates are revoked, and ``wall`` gives UTC.

    ``on_ended`` is called with what was ended. It must not block or raise.
    """

    def __init__(
        self,
        revoked: RevocationList,
        wall: Callable[[], datetime],
        on_ended: Callable[[CredentialEnded], None],
    ) -> None:
        self._revoked = revoked
        self._wall = wall
        self._on_ended = on_ended
        self._retired: frozenset[bytes] = frozenset()
        self._entries: dict[WatchEntry, None] = {}
        self._soonest = _NEVER  # that ends, of those that are entered
        self._timer = trio.CancelScope()
        revoked.subscribe(self._revoked_now)

    # Coming in.

    def require(self, proven: VerifiedCertificate | None) -> None:
        """Raises ``IdentityError`` if the certificate is not good now. None: nobody has shown one."""
        refused = self._why_not(proven, self._wall()) if proven is not None else None
        if refused is not None:
            raise refused

    def register(self, proven: VerifiedCertificate, end: Callable[[Refused], None]) -> WatchEntry:
        """From here on ``end`` is called when the certificate is not good any more."""
        entry = WatchEntry(proven, end, self)
        self._entries[entry] = None
        self.look_by(proven)
        return entry

    @contextlib.contextmanager
    def entered(self, proven: VerifiedCertificate | None, end: Callable[[Refused], None]) -> Iterator[None]:
        """The same for the time of a block."""
        entry = self.register(proven, end) if proven is not None else None
        try:
            yield
        finally:
            if entry is not None:
                entry.leave()

    @contextlib.contextmanager
    def cancel_when_revoked(self, proven: VerifiedCertificate | None) -> Iterator[None]:
        """Cancels the block when the certificate is not good any more, and raises why."""
        why: list[Refused] = []
        with trio.CancelScope() as scope:

            def end(refused: Refused) -> None:
                why.append(refused)
                scope.cancel()

            with self.entered(proven, end):
                yield
        if scope.cancelled_caught:
            raise why[0]

    def proven(self) -> list[VerifiedCertificate]:
        """By which certificates somebody is in."""
        return [entry.proven for entry in self._entries]

    def forget(self, entry: WatchEntry) -> None:
        self._entries.pop(entry, None)

    # Having to go.

    def retire(self, issuer_keys: frozenset[bytes]) -> None:
        """The certificates that these keys have signed lead to no trusted root any more."""
        self._retired = issuer_keys
        self._look([entry for entry in self._entries if entry.proven.issuer_key in issuer_keys])

    def _revoked_now(self, revocation: Revocation) -> None:
        subjects = revocation.subjects
        self._look(
            [
                entry
                for entry in self._entries
                if entry.proven.serial in subjects or entry.proven.identity.name in subjects
            ]
        )

    async def watch(self) -> None:
        """Ends what outlives its certificate, until it is cancelled."""
        while True:
            over = self._wall() - ALLOWANCE
            self._look([entry for entry in self._entries if entry.proven.ends <= over])
            self._soonest = min((entry.proven.ends for entry in self._entries), default=_NEVER)
            with trio.CancelScope(deadline=self._next_look()) as self._timer:
                await trio.sleep_forever()

    def look_by(self, proven: VerifiedCertificate) -> None:
        """Its end is watched for from here on."""
        if proven.ends < self._soonest:
            self._soonest = proven.ends
            self._timer.deadline = self._next_look()

    def _next_look(self) -> float:
        now, left = trio.current_time(), _LOOK_SECONDS
        if self._soonest is not _NEVER:
            left = min(left, (self._soonest - self._wall() + ALLOWANCE).total_seconds())
        return now + left

    def _look(self, candidates: list[WatchEntry]) -> None:
        """Ends those that are not good any more. An ``end`` may lead to others that leave, or come."""
        now, ended = self._wall(), dict[tuple[SpiffeId, str], CredentialEnded]()
        for entry in candidates:
            refused = self._why_not(entry.proven, now)
            if refused is not None and entry in self._entries:
                self.forget(entry)
                entry.end(refused)
                key = entry.proven.identity, entry.proven.serial
                before = ended[key].count if key in ended else 0
                ended[key] = CredentialEnded(entry.proven, refused, before + 1)
        for one in ended.values():
            self._on_ended(one)

    def _why_not(self, proven: VerifiedCertificate, now: datetime) -> IdentityError | None:
        if self._revoked.covers(proven.identity, proven.serial):
            return IdentityError.of(proven, refusal(proven.identity, proven.serial))
        if proven.issuer_key and proven.issuer_key in self._retired:
            return _refused(proven, Reason.ROOT_RETIRED, "leads to a root that was retired")
        if now >= proven.ends and now - ALLOWANCE >= proven.ends:
            ended = f"ended at {as_moment(proven.ends)}"
            return _refused(proven, Reason.CERTIFICATE_EXPIRED, ended)
        return None


def _refused(proven: VerifiedCertificate, reason: Reason, why: str) -> IdentityError:
    whose = f"the certificate {proven.serial} of {proven.identity.role.value} {proven.identity.name}"
    return IdentityError(reason, f"{whose} {why}", proven.identity, proven.serial)
