"""Limits of open connections, and of unauthenticated connections for each source. No I/O.

1. An unauthenticated connection counts against its source and against the listener. A connection beyond
   either count waits for its turn. Each connection of an honest burst needs only a few milliseconds, so a
   short wait loses none of them.
2. The number of waiting connections is bounded for each source and in total. A connection beyond these bounds
   is refused at once.
3. A source with an authenticated connection within ten minutes gets a larger allowance, because colleagues
   behind one NAT or proxy share an address. A stranger behind that address shares the allowance. It is a
   quarter of the listener's count, so a stranger cannot take the places of other sources.
4. An idle unauthenticated connection gives way to a waiting one. If the source is at its allowance, its
   longest idle connection is closed. If the listener is full, the fullest source loses its longest idle
   connection to a less full source. Fullness is the part of its allowance that a source uses. So idle
   connections of many sources keep no other source out.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import LOCAL, source_of
from tunnel_core.tally import Tally

KNOWN_SECONDS = 600.0
"""Time for which a source has the larger allowance after a connection from there was authenticated."""
MAX_KNOWN = 4096
"""Sources remembered as known."""
_KNOWN_SHARE = 4
"""Part of ``max_unauthenticated`` that a known source may have. Colleagues share a NAT."""
_WAITING_FOR_EACH = 4
"""Connections that may wait for each place of their source."""
MIN_IDLE_SECONDS = 2.0
"""Idle time before a connection may be closed for another one. A step of a handshake takes one round trip,
which is 0.6 s over a satellite."""
PATIENCE_SECONDS = 1.0
"""Wait after which a connection takes the place of one of a fuller source even if that one is not idle."""
_EVICTIONS_AT_ONCE = 32


class _Victim(NamedTuple):
    """The longest idle connection of a source. The greatest victim gives way first."""

    is_idle: bool
    fullness: float
    idle_seconds: float
    source: str


class Ticket:
    """One admitted connection. Its methods may be called in any order and more than once."""

    def __init__(self, admission: Admission, source: str) -> None:
        self.source = source
        self.waits = False
        """Whether the connection waits for its turn; ``on_turn`` is called at its turn."""
        self.on_turn: Callable[[], None] = lambda: None
        self.evicted: Refused | None = None
        """Why the connection must close in favour of another one; ``on_evicted`` is called when it is set."""
        self.on_evicted: Callable[[], None] = lambda: None
        self.since = admission.clock()
        """Time when its wait began, or when it last made progress."""
        self._admission = admission
        self._unauthenticated = True
        self._released = False

    def authenticated(self) -> None:
        """Record that the connection is authenticated. It stops counting, and its source becomes known."""
        if self._unauthenticated:
            self._unauthenticated = False
            self._admission.authenticated(self)

    def progressed(self) -> None:
        """Record that the peer has completed a step: a handshake, or the head of a request."""
        if self._unauthenticated and not self.waits:
            self._admission.progressed(self)

    def begin_work(self) -> None:
        """Keep the connection from giving way until ``progressed``, while the server works for it."""
        self._admission.no_longer_idle(self)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep the connection from giving way inside the block, while the server works for it."""
        self.begin_work()
        try:
            yield
        finally:
            self.progressed()

    def give_way(self, refused: Refused) -> None:
        """Close this connection in favour of another one. For :class:`Admission`, which counts."""
        self._unauthenticated, self.waits, self.evicted = False, False, refused
        self.on_evicted()

    def refusal(self) -> Refused:
        """Return the refusal for a connection whose turn did not come in time."""
        return self._admission.refusal_for(self.source)

    def refused(self) -> None:
        """Record that the connection failed to authenticate. It stays open only until its refusal is sent."""
        if self._unauthenticated:
            self._unauthenticated = False
            self._admission.departed(self)

    def release(self) -> None:
        """Record that the connection is closed."""
        if self._unauthenticated:
            self.refused()
        if not self._released:
            self._released = True
            self._admission.open_connections -= 1


class Admission:
    """The connection counts of one listener. ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        max_connections: int,
        max_unauthenticated_per_source: int,
        max_unauthenticated: int = 1024,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.open_connections = 0
        """The number of open connections, including those that wait."""
        self._max_connections = max_connections
        self._max_unauthenticated = max_unauthenticated
        self._max_per_source = max_unauthenticated_per_source
        self._max_known = max(max_unauthenticated_per_source, max_unauthenticated // _KNOWN_SHARE)
        self.clock = clock
        self._pending = 0
        self._unauthenticated: Tally[str] = Tally()
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._waiting_count = 0
        self._idle: dict[str, OrderedDict[Ticket, None]] = {}
        """The connections of each source that may give way, longest idle first."""
        self._known: OrderedDict[str, float] = OrderedDict()

    def admit(self, address: str) -> Ticket:
        """Count a connection from ``address``, which is an IP address, or empty for a unix socket.

        The connection may have to wait for its turn. Raises ``Refused`` with ``TOO_MANY_CONNECTIONS`` or
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
            self._count(ticket)
        else:
            self._queue(ticket)
        self.open_connections += 1
        return ticket

    def _has_room(self, source: str) -> bool:
        if self._pending >= self._max_unauthenticated:
            return False
        return self._unauthenticated[source] < self._allowance(source)

    def _allowance(self, source: str) -> int:
        """Return how many connections of this source may be unauthenticated at once."""
        if source == LOCAL:
            return self._max_unauthenticated
        since = self._known.get(source)
        is_known = since is not None and self.clock() - since < KNOWN_SECONDS
        return self._max_known if is_known else self._max_per_source

    def _count(self, ticket: Ticket) -> None:
        self._unauthenticated[ticket.source] += 1
        self._pending += 1
        self.progressed(ticket)

    def _queue(self, ticket: Ticket) -> None:
        """Let the connection wait. Raises ``Refused`` if too many wait already."""
        queue = self._waiting.get(ticket.source, ())
        if len(queue) >= self._allowance(ticket.source) * _WAITING_FOR_EACH:
            raise self.refusal_for(ticket.source)
        if self._waiting_count >= self._max_unauthenticated and not self._shorten_queue(len(queue)):
            raise self._too_many_strangers()
        self._waiting.setdefault(ticket.source, deque()).append(ticket)
        self._waiting_count += 1
        ticket.waits = True

    def _shorten_queue(self, length: int) -> bool:
        """Refuse the newest connection of the longest queue, if that queue is longer than ``length`` + 1.

        Returns whether there now is room for a source whose queue has ``length`` connections.
        """
        longest = max(self._waiting, key=lambda source: len(self._waiting[source]), default=None)
        if longest is None or len(self._waiting[longest]) <= length + 1:
            return False
        ticket = self._waiting[longest].pop()
        self._unqueued(longest)
        ticket.give_way(self.refusal_for(longest))
        return True

    # Making room.

    @property
    def has_waiting(self) -> bool:
        """Whether a connection waits. ``make_room`` must then be called again after a moment."""
        return self._waiting_count > 0

    def make_room(self) -> None:
        """Let idle connections give way to waiting ones."""
        now = self.clock()
        self._admit_waiting()
        for source in list(self._waiting):
            if not self._is_below_allowance(source) and (victim := self._longest_idle(source, now)):
                self._replace(victim, source, self._too_many_of(source))
        if self._pending >= self._max_unauthenticated:
            self._balance(now)

    def _balance(self, now: float) -> None:
        """Give each of the emptiest waiting sources one place of the fullest sources."""
        needy = [source for source in self._waiting if self._is_below_allowance(source)]
        victims = heapq.nlargest(_EVICTIONS_AT_ONCE, [self._as_victim(source, now) for source in self._idle])
        for source in heapq.nsmallest(_EVICTIONS_AT_ONCE, needy, key=self._fullness):
            for victim in victims:
                if self._gives_way(victim, source, now):
                    victims.remove(victim)
                    self._replace(next(iter(self._idle[victim.source])), source, self._too_many_strangers())
                    break

    def _as_victim(self, source: str, now: float) -> _Victim:
        since = next(iter(self._idle[source])).since
        return _Victim(now - since >= MIN_IDLE_SECONDS, self._fullness(source), now - since, source)

    def _gives_way(self, victim: _Victim, source: str, now: float) -> bool:
        """Whether the longest idle connection of ``victim.source`` gives way to one of ``source``."""
        if victim.is_idle:
            return victim.source == source or victim.fullness > self._fullness(source)
        has_waited = now - self._waiting[source][0].since >= PATIENCE_SECONDS
        return has_waited and victim.fullness > (self._unauthenticated[source] + 1) / self._allowance(source)

    def _longest_idle(self, source: str, now: float) -> Ticket | None:
        for ticket in self._idle.get(source, ()):
            return ticket if now - ticket.since >= MIN_IDLE_SECONDS else None
        return None

    def _replace(self, victim: Ticket, source: str, cause: Refused) -> None:
        self._uncount(victim)
        self._begin_next(source)
        detail = f"closed before it showed a certificate, because others wait: {cause.detail}"
        victim.give_way(Refused(cause.reason, detail))

    def _is_below_allowance(self, source: str) -> bool:
        return self._unauthenticated[source] < self._allowance(source)

    def _fullness(self, source: str) -> float:
        return self._unauthenticated[source] / self._allowance(source)

    def refusal_for(self, source: str) -> Refused:
        """Return the refusal for a connection of ``source`` that got no turn."""
        return self._too_many_strangers() if self._is_below_allowance(source) else self._too_many_of(source)

    def _too_many_of(self, source: str) -> Refused:
        return Refused(
            Reason.TOO_MANY_FROM_SOURCE,
            f"{self._unauthenticated[source]} unauthenticated connections from {source} are open; "
            "try again later",
        )

    def _too_many_strangers(self) -> Refused:
        return Refused(
            Reason.TOO_MANY_CONNECTIONS,
            f"{self._pending} connections here are not authenticated yet; try again later",
        )

    # Called by tickets.

    def authenticated(self, ticket: Ticket) -> None:
        """Stop counting an authenticated connection, and remember its source. For :class:`Ticket`."""
        if ticket.source != LOCAL:
            self._known[ticket.source] = self.clock()
            self._known.move_to_end(ticket.source)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        self.departed(ticket)

    def departed(self, ticket: Ticket) -> None:
        """Stop counting a connection that is authenticated, refused or closed. For :class:`Ticket`."""
        source = ticket.source
        if ticket.waits:
            ticket.waits = False
            self._waiting[source].remove(ticket)
            self._unqueued(source)
            return
        self._uncount(ticket)
        if self._waiting:
            self._admit_waiting()

    def progressed(self, ticket: Ticket) -> None:
        """Count the connection as idle from now on. For :class:`Ticket`."""
        ticket.since = self.clock()
        idle = self._idle.setdefault(ticket.source, OrderedDict())
        idle[ticket] = None
        idle.move_to_end(ticket)

    def no_longer_idle(self, ticket: Ticket) -> None:
        """Keep the connection from giving way. For :class:`Ticket`."""
        idle = self._idle.get(ticket.source)
        if idle is not None:
            idle.pop(ticket, None)
            if not idle:
                del self._idle[ticket.source]

    def _uncount(self, ticket: Ticket) -> None:
        self.no_longer_idle(ticket)
        self._pending -= 1
        self._unauthenticated.take(ticket.source)

    def _admit_waiting(self) -> None:
        """Give free places to waiting connections: one source after the other, oldest first in each."""
        for source in list(self._waiting):
            if self._pending >= self._max_unauthenticated:
                return
            while source in self._waiting and self._has_room(source):
                self._begin_next(source)

    def _begin_next(self, source: str) -> None:
        ticket = self._waiting[source].popleft()
        self._waiting.move_to_end(source)
        self._unqueued(source)
        ticket.waits = False
        self._count(ticket)
        ticket.on_turn()

    def _unqueued(self, source: str) -> None:
        self._waiting_count -= 1
        if not self._waiting[source]:
            del self._waiting[source]
