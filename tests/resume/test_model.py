"""A server and an agent against a model, over a network that does anything a network may do.

hypothesis decides what is taken, delivered, delayed, cut and restarted, at which end and in which order:
hellos, welcomes, uses and acknowledgements of several carriers overtake each other. Then the
network heals, and everything that may complete must have completed.
"""

from __future__ import annotations

import logging

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.resume.network import End
from tests.resume.site import Site, open_site
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.state import SessionState
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream

LIMITS = Limits(
    max_packet_bytes=900,
    initial_credit=2500,
    max_credit=6000,
    early_data=400,
    max_send_memory=3000,
    send_pool=5000,
    max_stream_queue=2000,
    grace_seconds=60,
    ping_interval_seconds=5,
)
_LOST_WITH_THE_SESSION = {
    Reason.AGENT_RESTARTED,
    Reason.UNKNOWN_SESSION,
    Reason.GRACE_EXPIRED,
    Reason.TAKEN_OVER,
    Reason.SESSION_LOST,
}
_GONE_BY_TIME = {Reason.NODE_NOT_ATTACHED, Reason.OPEN_TIMEOUT}
"""Ends of an open in a session that is alive: the script waited too long for the network."""


class Half:
    """One direction of a stream, and its expected bytes."""

    def __init__(self, sender: TunnelStream, seed: int) -> None:
        self.sender = sender
        self.receiver: TunnelStream | None = None
        self.seed = seed
        self.sent = self.received = 0
        self.ended = self.saw_end = self.broken = False

    def expected(self, start: int, size: int) -> bytes:
        return bytes((i * 7 + self.seed) % 251 for i in range(start, start + size))

    def push(self, size: int) -> None:
        if self.ended or self.broken or self.sender.room <= 0:
            return
        try:
            self.sender.send_nowait(self.expected(self.sent, size))
            self.sent += size
        except (StreamReset, trio.ClosedResourceError):
            self.broken = True

    def end(self) -> None:
        if not self.ended and not self.broken:
            try:
                self.sender.send_eof_nowait()
                self.ended = True
            except (StreamReset, trio.ClosedResourceError):
                self.broken = True

    def read(self, size: int) -> None:
        """Check that every byte arrives once and in order, and the end only after the last byte."""
        if self.receiver is None and self.sender.ended_by is not None:
            assert self.sender.ended_by in _LOST_WITH_THE_SESSION | _GONE_BY_TIME
            self.broken = True
        if self.receiver is None or self.broken or self.saw_end:
            return
        try:
            data = self.receiver.receive_nowait(size)
        except StreamReset as reset:
            assert reset.reason in _LOST_WITH_THE_SESSION | _GONE_BY_TIME, reset
            self.broken = True
            return
        except trio.ClosedResourceError:  # an open without an answer was reset by its own end
            assert self.receiver.ended_by in _GONE_BY_TIME
            self.broken = True
            return
        if data:
            assert data == self.expected(self.received, len(data))
            self.received += len(data)
        elif data == b"":
            assert self.ended and self.received == self.sent
            self.saw_end = True


class World:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.halves: list[Half] = []
        self.orphans: list[TunnelStream] = []  # the agent's ends of streams whose server is dead
        self.lost_sessions = False

    def step(self, what: str, a: int, b: int) -> None:
        site, ends = self.site, self.site.network.ends
        if what in ("take", "deliver", "lose") and ends:
            end: End = ends[a % len(ends)]
            getattr(end, what)()
            site.network.forget_over()
        elif what == "open" and len(self.halves) < 12:
            self._open()
        elif what == "restart agent":
            self.lost_sessions = True
            site.kill_agent()
            site.start_agent(bytes([b]) * 16, bytes([b // 64]) * 16)
        elif what == "restart server":
            self.lost_sessions = True
            self.orphans += [half.sender for half in self.halves if half.seed % 2]
            self.halves.clear()  # the memory of a dead program does not count
            site.kill_server()
        elif what == "route" and site.agent.failover is not None:
            site.agent.failover.route_changed()
        elif what == "strand" and site.agent.session is not None:
            if site.agent.session.attachment is not None:
                site.agent.session.carrier_lost("its address is gone")
        elif what == "slow":
            site.connect_seconds = b / 50
        elif self.halves and what in ("push", "read", "end"):
            half = self.halves[a % len(self.halves)]
            half.end() if what == "end" else getattr(half, what)(1 + b * 11)
        self._pair_up()

    def _open(self) -> None:
        try:
            near = self.site.open()
        except Refused:
            return
        self.halves.append(Half(near, 2 * len(self.halves)))

    def _pair_up(self) -> None:
        """Pair the agent's end of each stream with the server's end."""
        for far in self.site.far:
            for half in [half for half in self.halves if half.sender.open_sent and half.receiver is None]:
                if half.sender.id == far.id:
                    back = Half(far, half.seed + 1)
                    half.receiver, back.receiver = far, half.sender
                    self.halves.append(back)
        self.site.far = [far for far in self.site.far if far.ended_by is None and not _has(self.halves, far)]

    def check(self) -> None:
        site = self.site
        for node, session in site.nodes.attached():
            assert site.network.owners(session) == (session.lost is None), node
            assert session._protocol.mux.unacked_bytes <= LIMITS.max_send_memory
            assert session._protocol.mux.retained_bytes <= site.acceptor.send_pool.used
        assert site.acceptor.send_pool.used <= LIMITS.send_pool
        if site.agent.session is not None:
            assert site.network.owners(site.agent.session) <= 1

    async def heal(self) -> None:
        for _ in range(200):
            for half in self.halves:
                half.read(100_000)
                half.end()
            await self.site.pass_time(0.5, step=0.5)
            self._pair_up()
            if all(half.saw_end or half.broken for half in self.halves) and self._is_idle():
                return
        raise AssertionError("stuck", [vars(half) for half in self.halves])

    def _is_idle(self) -> bool:
        nodes = self.site.nodes.attached()
        return bool(nodes) and nodes[0][1].state is SessionState.ATTACHED


def _has(halves: list[Half], far: TunnelStream) -> bool:
    return any(half.receiver is far for half in halves)


steps = st.tuples(
    st.sampled_from(
        ["take", "deliver", "push", "read"] * 12
        + ["settle"] * 12
        + ["flush"] * 5
        + ["lose"] * 8
        + ["wait", "open", "end", "route", "strand", "slow"] * 2
        + ["restart agent", "restart server"]
    ),
    st.integers(0, 30),
    st.integers(0, 150),
)


@settings(deadline=None, max_examples=150)
@given(script=st.lists(steps, min_size=40, max_size=200))
def test_every_byte_once_and_in_order_whatever_the_network_does(
    script: list[tuple[str, int, int]],
) -> None:
    logging.disable(logging.CRITICAL)
    try:
        trio.run(_play, script, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)


async def _play(script: list[tuple[str, int, int]]) -> None:
    async with open_site(LIMITS) as site:
        world = World(site)
        for what, a, b in [("open", 0, 0), ("open", 0, 0), *script]:
            if what == "wait":
                await trio.sleep(b / 20)
            elif what == "settle":
                await site.settle()
            elif what == "flush":
                await site.flush()
            else:
                world.step(what, a, b)
            world.check()
        await world.heal()
        world.check()
        assert site.agent.session is not None
        assert not set(site.agent.session.streams.values()) & set(world.orphans)
        if not world.lost_sessions and not site.counters.session_ends:
            assert all(half.sender.ended_by in _GONE_BY_TIME for half in world.halves if half.broken)
        assert sum(session._protocol.mux.retained_bytes for _, session in site.nodes.attached()) == 0
