"""How many connections may be open, and how many from one source before it proved who it is. No I/O."""

from __future__ import annotations

import functools
import ipaddress
from collections import Counter

from tunnel_core.reasons import Reason, Refused

LOCAL = "local"
"""The source of unix sockets: the file's mode decides who comes in, so only the total bounds them."""


@functools.lru_cache(1024)
def source_of(address: str) -> str:
    """What counts as one source: an IPv4 address, or an IPv6 /64 (what one customer gets, RFC 6177)."""
    if not address:
        return LOCAL
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


class Ticket:
    """One admitted connection. Both methods may be called in any order and more than once."""

    def __init__(self, admission: Admission, source: str) -> None:
        self._admission = admission
        self._source = source
        self._unauthenticated = True
        self._released = False

    def authenticated(self) -> None:
        """The connection proved who it is and no longer counts against its source."""
        if self._unauthenticated:
            self._unauthenticated = False
            self._admission.forget_source(self._source)

    def release(self) -> None:
        """The connection is closed."""
        self.authenticated()
        if not self._released:
            self._released = True
            self._admission.open_connections -= 1


class Admission:
    """The counts of one listener."""

    def __init__(
        self, max_connections: int, max_unauthenticated_per_source: int, max_unauthenticated: int = 1024
    ) -> None:
        self.open_connections = 0
        self._max_connections = max_connections
        self._max_unauthenticated = max_unauthenticated
        self._pending = 0
        self._max_per_source = max_unauthenticated_per_source
        self._unauthenticated: Counter[str] = Counter()

    def admit(self, address: str) -> Ticket:
        """Counts a connection from ``address`` (an IP address, or empty for a unix socket).

        Raises ``Refused`` with ``TOO_MANY_CONNECTIONS`` or ``TOO_MANY_FROM_SOURCE``.
        """
        source = source_of(address)
        if self.open_connections >= self._max_connections:
            raise Refused(
                Reason.TOO_MANY_CONNECTIONS,
                f"{self.open_connections} connections are open here, which is the limit; try again later",
            )
        if self._pending >= self._max_unauthenticated:
            raise Refused(
                Reason.TOO_MANY_CONNECTIONS,
                f"{self._pending} connections here have yet to say who they are; try again later",
            )
        if source != LOCAL and self._unauthenticated[source] >= self._max_per_source:
            raise Refused(
                Reason.TOO_MANY_FROM_SOURCE,
                f"{self._max_per_source} unauthenticated connections from {source} are open; try again later",
            )
        self.open_connections += 1
        self._unauthenticated[source] += 1
        self._pending += 1
        return Ticket(self, source)

    def forget_source(self, source: str) -> None:
        """One connection of ``source`` is no longer unauthenticated; for :class:`Ticket`."""
        self._pending -= 1
        self._unauthenticated[source] -= 1
        if self._unauthenticated[source] <= 0:
            del self._unauthenticated[source]
