"""List of revocations in memory, for the checks of the data path. No I/O.

Revoking a name revokes every certificate of that name, from any issuer, whether or not this server knows the
certificate. Only certificates that this server issues after the revocation are valid. A node therefore comes
back with a new token, while a certificate that was stolen from it stays worthless.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused


class RevocationKind(enum.Enum):
    """The kind of subject that a revocation names."""

    NODE = "node"
    USER = "user"
    SERIAL = "serial"


_KINDS = {Role.NODE: RevocationKind.NODE, Role.USER: RevocationKind.USER}


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revocation of a name or a serial. ``at`` is in milliseconds since 1970.

    ``descendants`` are the serials that are revoked with a serial, because they were renewed from it.
    """

    number: int
    kind: RevocationKind
    subject: str
    at: int
    by: str
    why: str
    descendants: tuple[str, ...] = ()

    @property
    def subjects(self) -> frozenset[str]:
        """The revoked name, or the revoked serials."""
        return frozenset((self.subject, *self.descendants))


def kind_of(role: Role) -> RevocationKind | None:
    """Return the kind that revokes this role by name; None for servers, which are revoked by serial."""
    return _KINDS.get(role)


class RevocationList:
    """The revocations in force. For the trio thread."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Revocation], None]] = []
        self._names: dict[tuple[RevocationKind, str], set[str]] = {}
        self._serials: set[str] = set()

    def subscribe(self, on_revoked: Callable[[Revocation], None]) -> None:
        """Call ``on_revoked`` for each new revocation from now on. It must not block or raise."""
        self._subscribers.append(on_revoked)

    def covers(self, identity: SpiffeId, serial: str) -> bool:
        """Whether the certificate with this identity and serial (hex) is revoked."""
        if serial in self._serials:
            return True
        kind = kind_of(identity.role)
        readmitted = self._names.get((kind, identity.name)) if kind else None
        return readmitted is not None and serial not in readmitted

    def put(self, revocation: Revocation) -> None:
        """Add a revocation and call the subscribers.

        A revocation of a name also revokes the certificates that were issued after an earlier revocation.
        """
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
        descendants: frozenset[str] = frozenset(),
    ) -> None:
        """Remove the newest revocation of ``subject``. ``still``: an earlier revocation stays in force.

        ``readmitted`` are the serials that were issued after the earlier revocation. ``descendants`` are the
        serials that only the removed revocation had revoked with ``subject``.
        """
        if kind is RevocationKind.SERIAL:
            self._serials -= descendants
            if not still:
                self._serials.discard(subject)
        elif still:
            self._names[kind, subject] = set(readmitted)
        else:
            self._names.pop((kind, subject), None)

    def covers_name(self, kind: RevocationKind, name: str) -> bool:
        """Whether the name was revoked, and no certificate that was issued after the revocation is valid."""
        readmitted = self._names.get((kind, name))
        return readmitted is not None and readmitted <= self._serials

    def covers_node(self, name: str) -> bool:
        """Do the same as ``covers_name`` for the name of a node."""
        return self.covers_name(RevocationKind.NODE, name)

    def readmit(self, identity: SpiffeId, serial: str) -> None:
        """Accept a certificate that was issued after the revocation of its name."""
        kind = kind_of(identity.role)
        if kind is not None and (kind, identity.name) in self._names:
            self._names[kind, identity.name].add(serial)


def refusal(identity: SpiffeId, serial: str) -> Refused:
    """Return the refusal for a revoked certificate with this identity and serial (hex)."""
    holder = f"{identity.role.value} {identity.name}"
    sentence = f"the certificate {serial} of {holder}, or the name itself, was revoked"
    if identity.role is Role.USER:  # an agent adds its own next step
        # Short, because an HTTP reason phrase has room for 200 characters.
        sentence += (
            f"; on the server: qanat-server issue user {identity.name}, or user unrevoke {identity.name}"
        )
    return Refused(Reason.REVOKED, sentence)
