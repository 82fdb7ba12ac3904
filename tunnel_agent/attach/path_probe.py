"""Detect within a third of a second that a dead path to the server carries packets again.

1. An attempt on a dead path waits for the kernel's back-off of SYNs (1, 2, 4 s), and the next attempt begins
   one to two seconds later. So probes run beside the attempts: plain TCP connects to the addresses of the
   first hop (the server or its proxy), without a look-up, TLS or a byte of data.
2. A probe that is answered is closed at once. It starts an attempt only if an earlier probe of the same
   address got no answer. Otherwise the path was never dead, and the attempts under way need no help.
3. The bound on a dead path: 2 addresses, 4 SYNs a second each, 3 of them outstanding. With SYNs of 60 to 80
   bytes these are 640 bytes a second at most. A probe ends before the kernel retransmits its SYN.
4. After any answer, a refusal included, probes pause for 5 s, because then the server or its port is the
   trouble, not the path. Probes run only while ``FailoverPolicy.may_probe``, 30 s of an outage at most,
   because a fleet must not come back from a long outage in one instant. The interval is random for that, too.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import trio

from tunnel_agent.network.happy_eyeballs import Connect, connect_address
from tunnel_core.streams.sockets import SocketStream

Hop: TypeAlias = tuple[str, int]
"""IP address and port."""

_LEAST_INTERVAL_SECONDS, _MOST_INTERVAL_SECONDS = 0.25, 0.35
"""Time between two probes of one address."""
_ANSWER_SECONDS = 0.75
"""Time for which a probe waits for its answer: three probes of an address at once, and no SYN twice."""
_PAUSE_SECONDS = 5.0
"""Time after an answer in which no probe begins."""
_MAX_HOPS = 2
"""Addresses that are probed."""
_ANSWERS = {errno.ECONNREFUSED, errno.ECONNRESET}
"""Errors of a connect that prove that the path carries packets."""


class PathProbe:
    """Probes of one session's path. ``run`` must run; ``enable`` starts and stops the probes.

    ``hops`` returns the addresses of the first hop. ``on_return`` is called when a dead path carries packets
    again, with the time at which the answered probe began. It must not block or raise.
    """

    def __init__(
        self,
        hops: Callable[[], Sequence[Hop]],
        on_return: Callable[[float], None],
        connect: Connect = connect_address,
    ) -> None:
        self._hops = hops
        self._on_return = on_return
        self._connect = connect
        self._enabled = trio.Event()
        self._dead: set[Hop] = set()  # hops that left a probe unanswered
        self._dead_since = 0.0  # only probes that began since may add to ``_dead``
        self._next_at = 0.0

    def enable(self, *, wanted: bool) -> None:
        """Probe from now on, or stop and forget what was found."""
        if wanted:
            self._enabled.set()
        elif self._enabled.is_set():
            self._enabled = trio.Event()
            self._forget_dead()

    async def run(self) -> None:
        """Probe while enabled, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._enabled.wait()
                if trio.current_time() >= self._next_at:
                    self._next_at = trio.current_time() + _interval()
                    for hop in self._hops()[:_MAX_HOPS]:
                        nursery.start_soon(self._probe, hop)
                await trio.sleep_until(self._next_at)

    async def _probe(self, hop: Hop) -> None:
        began_at = trio.current_time()
        stream: SocketStream | None = None
        is_answered = False
        try:
            with trio.move_on_after(_ANSWER_SECONDS):
                stream = await self._connect(*hop)
                is_answered = True
        except OSError as error:
            is_answered = error.errno in _ANSWERS
        if is_answered:
            self._next_at = trio.current_time() + _PAUSE_SECONDS
        elif self._enabled.is_set() and began_at >= self._dead_since:
            self._dead.add(hop)
        if stream is not None:
            stream.close_nowait()
            if hop in self._dead:
                self._on_return(began_at)
        if is_answered:
            self._forget_dead()

    def _forget_dead(self) -> None:
        self._dead.clear()
        self._dead_since = trio.current_time()


def _interval() -> float:
    return random.uniform(_LEAST_INTERVAL_SECONDS, _MOST_INTERVAL_SECONDS)  # noqa: S311 - spreads load
