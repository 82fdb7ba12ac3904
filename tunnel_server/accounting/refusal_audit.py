"""Audit lines for refused identities: one a minute for each entrance, reason and source. No I/O.

Strangers cause such lines, so three bounds hold: one line a minute, a number of distinct sources, and the
share of refusals in the store. A line at the end of its minute gives the number of refusals that were left
out.
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace

from certs.x509 import IdentityError
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Category, Reason, Refused
from tunnel_core.sources import host_of, source_of
from tunnel_core.telemetry.logs import log_event
from tunnel_server.auth.credential_watch import CredentialEnded
from tunnel_server.store.audit import AuditKind, AuditLine

_log = logging.getLogger("qanat.server")

WINDOW_SECONDS = 60.0
"""Time between two lines of the audit about refusals of one listener, reason and source, because strangers
cause them."""
MAX_SOURCES = 1000
"""Sources that are distinguished at a time."""


@dataclass(slots=True)
class _Window:
    line: AuditLine
    ends: float
    left_out: int = 0


class Refusals:
    """Recorder of refusals. ``write`` takes a line and never blocks; ``clock`` gives monotonic seconds."""

    def __init__(self, write: Callable[[AuditLine], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._windows: dict[tuple[str, Reason, str], _Window] = {}

    def note(self, entrance: str, source: str, refused: Refused) -> None:
        """Record a refusal of the peer at ``source``, which is an address with its port."""
        if _is_audited(refused.reason):
            key = entrance, refused.reason, _source_key(source)
            self._add(key, _line(entrance, source, refused))

    def note_user(self, entrance: str, user: str, node: str, source: str, refused: Refused) -> None:
        """Record that a user was refused by the grants. The lines of a user are bounded, from any source."""
        if _is_audited(refused.reason):
            key = entrance, refused.reason, f"user {user}"
            self._add(key, replace(_line(entrance, source, refused), user=user, node=node))

    def _add(self, key: tuple[str, Reason, str], line: AuditLine) -> None:
        self.sweep()
        if key not in self._windows and len(self._windows) >= MAX_SOURCES:
            key = *key[:2], ""
        window = self._windows.get(key)
        if window is not None:
            window.left_out += 1
            return
        self._windows[key] = _Window(line, self._clock() + WINDOW_SECONDS)
        self._write(line)

    def sweep(self, *, ends: bool = False) -> None:
        """Write the counts of the minutes that are over; of all minutes if the program ``ends``."""
        now = self._clock()
        for key, window in list(self._windows.items()):
            if not ends and now < window.ends:
                return  # the oldest comes first
            del self._windows[key]
            if window.left_out:
                detail = f"{window.left_out} more within a minute, the first of them: {window.line.detail}"
                self._write(replace(window.line, detail=detail))


def _is_audited(reason: Reason) -> bool:
    """Whether the audit must name the peer that was refused."""
    if reason is Reason.NOT_GRANTED:
        return True
    match reason.category:
        case Category.IDENTITY | Category.PERMANENT:
            return True
        case (
            Category.NORMAL
            | Category.MISUSE
            | Category.POLICY
            | Category.ABSENT
            | Category.TARGET
            | Category.LIMIT
            | Category.TEMPORARY
            | Category.SESSION_OVER
            | Category.PEER_FAULT
            | Category.INTERNAL
        ):
            return False
        case _ as never:
            typing.assert_never(never)


def _source_key(source: str) -> str:
    try:
        return source_of(host_of(source))
    except ValueError:
        return source  # a user id at a unix socket


def _line(entrance: str, source: str, refused: Refused) -> AuditLine:
    reason, detail = refused.reason.word, f"{entrance}: {refused.detail}"
    line = AuditLine(AuditKind.REFUSED, source=source, reason=reason, detail=detail)
    if not isinstance(refused, IdentityError):
        return line
    return with_identity(refused.identity, replace(line, serial=refused.serial))


def record_ended(write: Callable[[AuditLine], None], ended: CredentialEnded) -> None:
    """Log the number of things that were ended with a certificate, and audit it by ``write``."""
    certificate, refused = ended.certificate, ended.refused
    subject = "session, stream or answer was" if ended.count == 1 else "sessions, streams or answers were"
    sentence = f"{ended.count} {subject} ended: {refused.detail}"
    log_event(_log, logging.WARNING, sentence, reason=refused.reason, serial=certificate.serial)
    line = AuditLine(AuditKind.ENDED, serial=certificate.serial, reason=refused.reason.word, detail=sentence)
    write(with_identity(certificate.identity, line))


def record_withdrawn(write: Callable[[AuditLine], None], user: str, count: int, refused: Refused) -> None:
    """Log and audit that a change of access ended ``count`` streams of ``user``."""
    subject = "stream was" if count == 1 else "streams were"
    sentence = f"{count} {subject} ended: {refused.detail}"
    log_event(_log, logging.WARNING, sentence, reason=refused.reason, user=user)
    write(AuditLine(AuditKind.ENDED, user=user, reason=refused.reason.word, detail=sentence))


def with_identity(identity: SpiffeId | None, line: AuditLine) -> AuditLine:
    """Return the line with the name of the node or user. A line has no field for a server's name."""
    if identity is None:
        return line
    match identity.role:
        case Role.NODE:
            return replace(line, node=identity.name)
        case Role.USER:
            return replace(line, user=identity.name)
        case Role.SERVER:
            return line
