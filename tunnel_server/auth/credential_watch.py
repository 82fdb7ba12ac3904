"""End sessions and streams when their certificate is revoked, expires, or loses its root.

1. TLS checks a certificate once, in the handshake. A session, a stream or a waiting answer outlives the
   handshake, so each registers here with a callback that ends it.
2. A certificate becomes invalid when it or its name is revoked, when it expires, or when its root is retired.
   Revocations and retired roots are reported to the watch, which checks all entries at once. One timer serves
   all expiries. No check is made for a byte or a packet.
3. A session depends on the certificate that its current carrier has proven (``WatchEntry.renew``). An agent
   that renews in time therefore never reaches an expiry. A user's stream has one connection, and ends with
   that connection.
4. A new request calls ``require`` first, also on a connection that was kept alive.

For the trio thread. The watch knows nothing about the things that it ends.
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
"""Time by which a session or a stream may outlive its certificate, so that a renewal that is under way is not
cut off at its last step."""
_NEVER = datetime.max.replace(tzinfo=UTC)
_MAX_CHECK_SECONDS = 60.0
"""Longest time between two checks for expiry, because this machine's clock may be set meanwhile."""


@dataclass(slots=True, eq=False)
class WatchEntry:
    """A session, stream or answer that depends on a certificate.

    ``end`` ends it, is called at most once, and must not block or raise.
    """

    certificate: VerifiedCertificate
    end: Callable[[Refused], None]
    watch: CredentialWatch

    def renew(self, certificate: VerifiedCertificate) -> None:
        """Depend on another certificate of the same identity from now on."""
        self.certificate = certificate
        self.watch.schedule_check(certificate)

    def remove(self) -> None:
        """Stop watching, because the watched thing has ended by itself. Idempotent."""
        self.watch.forget(self)


@dataclass(frozen=True, slots=True)
class CredentialEnded:
    """A certificate that became invalid, and the ``count`` of sessions, streams or answers ended with it."""

    certificate: VerifiedCertificate
    refused: Refused
    count: int


class CredentialWatch:
    """Watch of the certificates in use. ``revoked`` lists the revocations, and ``wall`` gives UTC.

    ``on_ended`` is called once for each certificate whose entries were ended. It must not block or raise.
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
        self._soonest = _NEVER  # earliest expiry among the entries
        self._timer = trio.CancelScope()
        revoked.subscribe(self._on_revoked)

    # Registration.

    def require(self, certificate: VerifiedCertificate | None) -> None:
        """Raise ``IdentityError`` if the certificate is not valid now. None stands for no certificate."""
        refused = self._why_invalid(certificate, self._wall()) if certificate is not None else None
        if refused is not None:
            raise refused

    def register(self, certificate: VerifiedCertificate, end: Callable[[Refused], None]) -> WatchEntry:
        """Call ``end`` with the refusal as soon as the certificate becomes invalid.

        A certificate that is already revoked is not noticed, so call ``require`` first.
        """
        entry = WatchEntry(certificate, end, self)
        self._entries[entry] = None
        self.schedule_check(certificate)
        return entry

    @contextlib.contextmanager
    def registered(
        self, certificate: VerifiedCertificate | None, end: Callable[[Refused], None]
    ) -> Iterator[None]:
        """Do the same as ``register`` for the time of a block. None for ``certificate`` watches nothing."""
        entry = self.register(certificate, end) if certificate is not None else None
        try:
            yield
        finally:
            if entry is not None:
                entry.remove()

    @contextlib.contextmanager
    def cancel_when_revoked(self, certificate: VerifiedCertificate | None) -> Iterator[None]:
        """Cancel the block when the certificate becomes invalid, and raise the refusal after the block."""
        refusals: list[Refused] = []
        with trio.CancelScope() as scope:

            def end(refused: Refused) -> None:
                refusals.append(refused)
                scope.cancel()

            with self.registered(certificate, end):
                yield
        if scope.cancelled_caught:
            raise refusals[0]

    def live_certificates(self) -> list[VerifiedCertificate]:
        """Return the certificate of each entry; a certificate with several entries occurs several times."""
        return [entry.certificate for entry in self._entries]

    def forget(self, entry: WatchEntry) -> None:
        """Remove an entry. Idempotent."""
        self._entries.pop(entry, None)

    # Invalid certificates.

    def retire(self, issuer_keys: frozenset[bytes]) -> None:
        """End the entries whose certificates these keys have signed, and refuse such certificates.

        The keys replace those of an earlier call.
        """
        self._retired = issuer_keys
        self._end_invalid([entry for entry in self._entries if entry.certificate.issuer_key in issuer_keys])

    def _on_revoked(self, revocation: Revocation) -> None:
        subjects = revocation.subjects
        self._end_invalid(
            [
                entry
                for entry in self._entries
                if entry.certificate.serial in subjects or entry.certificate.identity.name in subjects
            ]
        )

    async def watch(self) -> None:
        """End the entries whose certificates expire, until this task is cancelled."""
        while True:
            over = self._wall() - ALLOWANCE
            self._end_invalid([entry for entry in self._entries if entry.certificate.ends <= over])
            self._soonest = min((entry.certificate.ends for entry in self._entries), default=_NEVER)
            with trio.CancelScope(deadline=self._next_check()) as self._timer:
                await trio.sleep_forever()

    def schedule_check(self, certificate: VerifiedCertificate) -> None:
        """Wake ``watch`` no later than the expiry of this certificate."""
        if certificate.ends < self._soonest:
            self._soonest = certificate.ends
            self._timer.deadline = self._next_check()

    def _next_check(self) -> float:
        now, left = trio.current_time(), _MAX_CHECK_SECONDS
        if self._soonest is not _NEVER:
            left = min(left, (self._soonest - self._wall() + ALLOWANCE).total_seconds())
        return now + left

    def _end_invalid(self, candidates: list[WatchEntry]) -> None:
        """End the candidates that are invalid now. An ``end`` may add or remove other entries."""
        now, ended = self._wall(), dict[tuple[SpiffeId, str], CredentialEnded]()
        for entry in candidates:
            refused = self._why_invalid(entry.certificate, now)
            if refused is not None and entry in self._entries:
                self.forget(entry)
                entry.end(refused)
                key = entry.certificate.identity, entry.certificate.serial
                before = ended[key].count if key in ended else 0
                ended[key] = CredentialEnded(entry.certificate, refused, before + 1)
        for credential_ended in ended.values():
            self._on_ended(credential_ended)

    def _why_invalid(self, certificate: VerifiedCertificate, now: datetime) -> IdentityError | None:
        if self._revoked.covers(certificate.identity, certificate.serial):
            return IdentityError.of(certificate, refusal(certificate.identity, certificate.serial))
        if certificate.issuer_key and certificate.issuer_key in self._retired:
            return _identity_error(certificate, Reason.ROOT_RETIRED, "leads to a root that was retired")
        if now >= certificate.ends and now - ALLOWANCE >= certificate.ends:
            ended = f"ended at {as_moment(certificate.ends)}"
            return _identity_error(certificate, Reason.CERTIFICATE_EXPIRED, ended)
        return None


def _identity_error(certificate: VerifiedCertificate, reason: Reason, problem: str) -> IdentityError:
    holder = f"{certificate.identity.role.value} {certificate.identity.name}"
    sentence = f"the certificate {certificate.serial} of {holder} {problem}"
    return IdentityError(reason, sentence, certificate.identity, certificate.serial)
