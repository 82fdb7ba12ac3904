"""Who is shut out, in memory: what the data path asks. No I/O.

A name that was revoked shuts out every certificate with it, whoever issued it and whether or not we know
of it, but those that were issued here after the revocation: a node comes back with a new token, while
what was stolen from it stays worthless.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused


class RevocationKind(enum.Enum):
    """What a revocation names."""

    NODE = "node"
    USER = "user"
    SERIAL = "serial"


_KINDS = {Role.NODE: RevocationKind.NODE, Role.USER: RevocationKind.USER}


@dataclass(frozen=True, slots=True)
class Revocation:
    """``at`` is in milliseconds since 1970. ``along`` are the serials that are revoked with a serial, because
    they were renewed from it.
    """

    number: int
    kind: RevocationKind
    subject: str
    at: int
    by: str
    why: str
    along: tuple[str, ...] = ()

    @property
    def subjects(self) -> frozenset[str]:
        """What is revoked: names or serials."""
        return frozenset((self.subject, *self.along))


def kind_of(role: Role) -> RevocationKind | None:
    """How a role is revoked by name; None for servers, which are revoked by serial."""
    return _KINDS.get(role)


class RevocationList:
    """The revocations that hold now. For the trio thread."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Revocation], None]] = []
        self._names: dict[tuple[RevocationKind, str], set[str]] = {}
        self._serials: set[str] = set()

    def subscribe(self, on_revoked: Callable[[Revocation], None]) -> None:
        """Call ``on_revoked`` for each new revocation from now on. It must not block or raise."""
        self._subscribers.append(on_revoked)

    def covers(self, identity: SpiffeId, serial: str) -> bool:
        """Whether a certificate, by its identity and serial (hex), is shut out."""
        if serial in self._serials:
            return True
        kind = kind_of(identity.role)
        readmitted = self._names.get((kind, identity.name)) if kind else None
        return readmitted is not None and serial not in readmitted

    def put(self, revocation: Revocation) -> None:
        """From now on; certificates that came after an earlier revocation of the name are out again."""
        if revocation.kind is RevocationKind.SERIAL:
            self._serials |= revocation.subjects
        else:
            self._names[revocation.kind, revocation.subject] = set()
        for on_revoked in self._subscribers:
            on_revoked(revocation)

    def take_back(
        self,
        kind: RevocationKind,
        subject: str,
        *,
        still: bool,
        readmitted: frozenset[str],
        along: frozenset[str] = frozenset(),
    ) -> None:
        """The newest revocation of ``subject`` holds no more. ``still``: an earlier one does.

        ``readmitted`` are the serials that came after that earlier one. ``along`` are further serials that
        were revoked with ``subject`` and by nothing else.
        """
        if kind is RevocationKind.SERIAL:
            self._serials -= along
            if not still:
                self._serials.discard(subject)
        elif still:
            self._names[kind, subject] = set(readmitted)
        else:
            self._names.pop((kind, subject), None)

    def covers_name(self, kind: RevocationKind, name: str) -> bool:
        """Whether no certificate with this name is let in, because the name was revoked."""
        readmitted = self._names.get((kind, name))
        return readmitted is not None and readmitted <= self._serials

    def covers_node(self, name: str) -> bool:
        """Whether no certificate of this node is let in, because its name was revoked."""
        return self.covers_name(RevocationKind.NODE, name)

    def readmit(self, identity: SpiffeId, serial: str) -> None:
        """A certificate was issued after the revocation of its name."""
        kind = kind_of(identity.role)
        if kind is not None and (kind, identity.name) in self._names:
            self._names[kind, identity.name].add(serial)


def refusal(identity: SpiffeId, serial: str) -> Refused:
    who = f"{identity.role.value} {identity.name}"
    sentence = f"the certificate {serial} of {who}, or the name itself, was revoked"
    if identity.role is Role.USER:  # an agent tells its own next step
        # Short, because a reason phrase has room for 200 characters.
        sentence += (
            f"; on the server: qanat-server issue user {identity.name}, or user unrevoke {identity.name}"
        )
    return Refused(Reason.REVOKED, sentence)
