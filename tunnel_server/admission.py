"""How many connections may be open, and how many of one source without authentication. No I/O.

1. A connection that is not authenticated counts against its source and against the listener. One beyond
   either count waits for its turn: a burst of honest connections needs a few milliseconds each, so a short
   wait loses none of them.
2. What waits is bounded as well, for each source and in total. Beyond that a connection is refused at once.
3. A source from which a connection was authenticated within ten minutes gets a larger allowance: colleagues
   behind one NAT or proxy share an address. A stranger behind that address shares the allowance too. It is a
   quarter of the listener's count, so a stranger cannot take the places of other sources.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import LOCAL, source_of

KNOWN_SECONDS = 600.0
MAX_KNOWN = 4096
"""Sources remembered as known; the source with the oldest authentication is forgotten first."""
_KNOWN_SHARE = 4
_WAITING_FOR_EACH = 4
"""Connections that may wait for each that may go on."""


class Ticket:
    """One admitted connection. Its methods may be called in any order and more than once."""

    def __init__(self, admission: Admission, source: str) -> None:
        self.source = source
        self.waits = False
        """Whether its turn has still to come; ``on_turn`` is called when it does."""
        self.on_turn: Callable[[], None] = lambda: None
        self._admission = admission
        self._unauthenticated = True
        self._released = False

    def authenticated(self) -> None:
        """The connection is authenticated: it no longer counts against its source, which is known now."""
        if self._unauthenticated:
            self._unauthenticated = False
            self._admission.proved(self)

    def refusal(self) -> Refused:
        """Return the refusal for a connection whose turn did not come in time."""
        return self._admission.why_late(self.source)

    def refused(self) -> None:
        """The connection failed to authenticate; it stays open only until its refusal is delivered."""
        if self._unauthenticated:
            self._unauthenticated = False
            self._admission.left(self)

    def release(self) -> None:
        """The connection is closed."""
        self.refused()
        if not self._released:
            self._released = True
            self._admission.open_connections -= 1


class Admission:
    """The counts of one listener. ``clock`` gives steady seconds."""

    def __init__(
        self,
        max_connections: int,
        max_unauthenticated_per_source: int,
        max_unauthenticated: int = 1024,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.open_connections = 0
        """All that are open, those that wait included."""
        self._max_connections = max_connections
        self._max_unauthenticated = max_unauthenticated
        self._max_per_source = max_unauthenticated_per_source
        self._max_known = max(max_unauthenticated_per_source, max_unauthenticated // _KNOWN_SHARE)
        self._clock = clock
        self._pending = 0
        self._unauthenticated: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._waiting_count = 0
        self._known: OrderedDict[str, float] = OrderedDict()

    def admit(self, address: str) -> Ticket:
        """Counts a connection from ``address`` (an IP address, or empty for a unix socket).

        The ticket may have to wait for its turn. Raises ``Refused`` with ``TOO_MANY_CONNECTIONS`` or
        ``TOO_MANY_FROM_SOURCE``.
        """
        source = source_of(address)
        if self.open_connections >= self._max_connections:
            raise Refused(
                Reason.TOO_MANY_CONNECTIONS,
                f"{self.open_connections} connections are open here, which is the limit; try again later",
            )
        ticket = Ticket(self, source)
        if source not in self._waiting and self._has_room(source):
            self._count(source)
        else:
            self._queue(ticket)
        self.open_connections += 1
        return ticket

    def _has_room(self, source: str) -> bool:
        return self._pending < self._max_unauthenticated and (
            self._unauthenticated[source] < self._allowance(source)
        )

    def _allowance(self, source: str) -> int:
        """How many of this source may be unauthenticated at once."""
        if source == LOCAL:
            return self._max_unauthenticated
        since = self._known.get(source)
        is_known = since is not None and self._clock() - since < KNOWN_SECONDS
        return self._max_known if is_known else self._max_per_source

    def _count(self, source: str) -> None:
        self._unauthenticated[source] += 1
        self._pending += 1

    def _queue(self, ticket: Ticket) -> None:
        """Raises ``Refused`` if too many wait already."""
        queue = self._waiting.get(ticket.source, ())
        if len(queue) >= self._allowance(ticket.source) * _WAITING_FOR_EACH:
            raise self.why_late(ticket.source)
        if self._waiting_count >= self._max_unauthenticated:
            raise self._too_many_strangers()
        self._waiting.setdefault(ticket.source, deque()).append(ticket)
        self._waiting_count += 1
        ticket.waits = True

    def why_late(self, source: str) -> Refused:
        """Return the refusal for a connection that got no turn."""
        if self._unauthenticated[source] < self._allowance(source):
            return self._too_many_strangers()
        return Refused(
            Reason.TOO_MANY_FROM_SOURCE,
            f"{self._unauthenticated[source]} unauthenticated connections from {source} are open; "
            "try again later",
        )

    def _too_many_strangers(self) -> Refused:
        return Refused(
            Reason.TOO_MANY_CONNECTIONS,
            f"{self._pending} connections here have yet to say who they are; try again later",
        )

    # Called by tickets.

    def proved(self, ticket: Ticket) -> None:
        """The connection is no longer unauthenticated, and its source is known; for :class:`Ticket`."""
        if ticket.source != LOCAL:
            self._known[ticket.source] = self._clock()
            self._known.move_to_end(ticket.source)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        self.left(ticket)

    def left(self, ticket: Ticket) -> None:
        """The connection is no longer unauthenticated, or has left; for :class:`Ticket`."""
        source = ticket.source
        if ticket.waits:
            ticket.waits = False
            self._waiting[source].remove(ticket)
            self._unqueued(source)
            return
        self._pending -= 1
        self._unauthenticated[source] -= 1
        if self._unauthenticated[source] <= 0:
            del self._unauthenticated[source]
        self._call_waiting()

    def _call_waiting(self) -> None:
        """Gives free places to those that wait: to one source after the other, oldest first in each."""
        for source in list(self._waiting):
            if self._pending >= self._max_unauthenticated:
                return
            while source in self._waiting and self._has_room(source):
                ticket = self._waiting[source].popleft()
                self._waiting.move_to_end(source)
                self._unqueued(source)
                self._count(source)
                ticket.waits = False
                ticket.on_turn()

    def _unqueued(self, source: str) -> None:
        self._waiting_count -= 1
        if not self._waiting[source]:
            del self._waiting[source]
