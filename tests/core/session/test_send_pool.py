"""Shares of the memory for unacknowledged bytes: a peer that never acknowledges leaves room for others."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.support.fakes.memory_link import welcome
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.session.memory_pressure import UnackedWatch, relieve_send_pool
from tunnel_core.session.profiles import profile_of
from tunnel_core.session.protocol import SessionProtocol
from tunnel_core.session.statistics import SessionStatistics
from tunnel_core.wire.frames import Data, DataParts, Frame, Open, Opened, Packet

REQUEST = Open(0, "localhost:22", "operator", "tcp", 0)
LIMITS = Limits(flight_limit=False, send_pool=16 * MIB, max_send_memory=8 * MIB, max_credit=16 * MIB)


class Sender:
    """A server's session whose peer grants much credit and acknowledges when the test decides."""

    def __init__(self, pool: SendPool, node: str = "edge1") -> None:
        self.node = node
        self.attached, self.is_silent = True, False
        self.mux = Mux(LIMITS, CreditPool(0), opener=True, send_pool=pool)
        profile = profile_of(metered=False)
        self.session = SessionProtocol(self.mux, LIMITS, welcome(LIMITS), profile, pings=False, now=0.0)
        self.woken = 0
        self.mux.wake = self._wake

    def _wake(self) -> None:
        self.woken += 1

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(
            is_silent=self.is_silent, acked=self.session.acked, retained_bytes=self.mux.retained_bytes
        )

    @property
    def mux_streams(self) -> list[StreamState]:
        return list(self.mux.streams.values())

    def stream(self, size: int = 0) -> StreamState:
        stream = self.mux.open(REQUEST)
        self.say()
        self.mux.receive(Opened(stream.number, 64 * MIB))
        if size:
            stream.push(bytes(size))
        return stream

    def say(self) -> list[Frame]:
        frames: list[Frame] = []
        while (packet := self.session.next_packet(0.0)) is not None:
            frames += packet.frames
        return frames

    def acknowledge(self) -> None:
        self.session.receive(Packet(0, self.session._number, ()), 10, 0.0)


def content(frames: list[Frame]) -> int:
    return sum(
        len(frame.payload) if isinstance(frame, Data) else sum(map(len, frame.parts))
        for frame in frames
        if isinstance(frame, Data | DataParts)
    )


def greedy(pool: SendPool, count: int) -> list[Sender]:
    """Return sessions that send all they can, with peers that acknowledge nothing."""
    senders = [Sender(pool, f"greedy{number}") for number in range(count)]
    for sender in senders:
        sender.stream(20 * MIB)
    for _ in range(3):  # earlier sessions may fill what the others left
        for sender in senders:
            sender.say()
    return senders


def test_any_number_of_sessions_that_acknowledge_nothing_leave_a_share_for_one_that_does() -> None:
    for count in (1, 9, 100):
        pool = SendPool(LIMITS.send_pool)
        for sender in greedy(pool, count):
            assert sender.mux.retained_bytes * 8 <= LIMITS.send_pool
        assert pool.used < pool.size
        innocent = Sender(pool)
        stream = innocent.stream()
        stream.push(bytes(64 * KIB))
        assert content(innocent.say()) >= (64 if count < 10 else 8) * KIB, count


def test_a_moving_stream_moves_on_while_others_acknowledge_nothing() -> None:
    pool = SendPool(LIMITS.send_pool)
    greedy(pool, 9)
    innocent = Sender(pool)
    innocent.stream(20 * MIB)
    moved = 0
    for _ in range(40):
        moved += content(innocent.say())
        innocent.acknowledge()
    assert moved == 20 * MIB


def test_opens_and_their_early_data_have_a_reserve() -> None:
    pool = SendPool(LIMITS.send_pool)
    sender = Sender(pool)
    sender.stream(64 * KIB)
    sender.say()
    pool.used = LIMITS.send_pool - LIMITS.send_pool // 16  # data has had all of its part
    stream = sender.mux.open(REQUEST, b"GET / ")
    stream.push(b"and what follows")
    [frame] = sender.say()
    assert isinstance(frame, Open) and frame.early_data
    sender.mux.receive(Opened(stream.number, 64 * KIB))
    stream.push(b"later")
    assert not sender.mux.has_data


def test_a_session_that_waits_is_woken_once_there_is_room_for_a_packet_and_not_before() -> None:
    pool = SendPool(LIMITS.send_pool)
    sender = Sender(pool)
    stream = sender.stream(64 * KIB)
    sender.say()
    pool.used = LIMITS.send_pool - MIB  # other sessions hold all the memory for data
    stream.push(bytes(MIB))
    assert sender.say() == []
    sender.woken = 0
    pool.release(512 * KIB)
    assert not sender.woken
    pool.release(200 * KIB)
    assert sender.woken == 1
    assert content(sender.say()) > 0


def test_a_session_that_keeps_nothing_is_woken_by_the_first_room() -> None:
    pool = SendPool(LIMITS.send_pool)
    sender = Sender(pool)
    stream = sender.stream()
    pool.used = LIMITS.send_pool  # as resumed sessions may have it
    stream.push(b"key")
    assert sender.say() == []
    sender.woken = 0
    pool.release(1 * KIB)
    assert sender.woken == 1 and content(sender.say()) == 3


def test_a_session_over_its_share_continues_with_its_own_acks() -> None:
    pool = SendPool(LIMITS.send_pool)
    sender = Sender(pool)
    sender.stream(20 * MIB)
    sender.say()
    assert not sender.mux.has_data
    sender.acknowledge()
    assert sender.mux.has_data and content(sender.say()) > 0


def test_bytes_taken_back_are_retransmitted_and_add_nothing() -> None:
    pool = SendPool(LIMITS.send_pool)
    sender = Sender(pool)
    sender.stream(20 * MIB)
    sender.say()
    fresh = sender.stream(MIB)
    full = sender.mux.retained_bytes
    for now in range(1, 20):  # a peer that comes back again and again, and acknowledges nothing
        sender.session.move(0, float(now))
        sender.say()
        assert sender.mux.retained_bytes == full
        assert sender.mux.unacked_bytes == full, "all of it was sent again"
    assert fresh.send.sent == 0
    for _ in range(40):
        sender.acknowledge()
        sender.say()
    assert fresh.send.sent == MIB, "it stands in a list, and gets its turn"


def test_stale_registrations_do_not_heap_up() -> None:
    pool = SendPool(LIMITS.send_pool)
    called: list[int] = []

    def wake() -> None:
        called.append(1)

    for held in range(10_000):
        pool.call_when_free(wake, held)
    assert len(pool._by_threshold) < 200
    pool.used = 10
    pool.release(10)
    assert called == [1]
    pool.call_when_free(wake, 0)
    pool.forget(wake)
    pool.used = 10
    pool.release(10)
    assert called == [1]


def test_a_session_that_acknowledges_nothing_is_reset_while_memory_is_short() -> None:
    pool = SendPool(LIMITS.send_pool)
    senders = greedy(pool, 40)
    assert pool.is_short
    watch = UnackedWatch(pool, 5, 30)
    assert watch.find_victims(senders, 0) == []
    senders[3].acknowledge()
    assert watch.find_victims(senders, 4.9) == []
    stalled = watch.find_victims(senders, 5.1)
    assert senders[3] not in stalled and len(stalled) == 39
    assert stalled == sorted(stalled, key=lambda sender: -sender.mux.retained_bytes)


def test_no_session_is_reset_while_there_is_memory() -> None:
    pool = SendPool(LIMITS.send_pool)
    senders = greedy(pool, 9)
    watch = UnackedWatch(pool, 5, 30)
    assert watch.find_victims(senders, 0) == watch.find_victims(senders, 1000) == []


def test_a_short_outage_ends_nothing() -> None:
    pool = SendPool(LIMITS.send_pool)
    senders = greedy(pool, 40)
    away, silent, *others = senders
    away.attached, silent.is_silent = False, True
    watch = UnackedWatch(pool, 5, 30)
    for now in (0, 5.1):
        assert not {away, silent} & set(watch.find_victims(senders, now))
    assert set(watch.find_victims(senders, 6)) == set(others)
    away.attached, silent.is_silent = True, False
    for now in (7.0, 11.9):  # they are back, and their acknowledgement is under way
        assert not {away, silent} & set(watch.find_victims(senders, now))
    assert {away, silent} <= set(watch.find_victims(senders, 12))


def test_to_come_and_go_holds_no_memory_for_ever() -> None:
    pool = SendPool(LIMITS.send_pool)
    senders = greedy(pool, 40)
    watch = UnackedWatch(pool, 5, 30)
    for now in range(30):
        senders[0].attached = bool(now % 4)
        assert senders[0] not in watch.find_victims(senders, now)
    assert senders[0] in watch.find_victims(senders, 30)
    assert watch.seconds_of(senders[0], 30) == 30


async def test_streams_that_fill_it_are_reset_until_it_is_short_no_more(autojump_clock: MockClock) -> None:
    pool = SendPool(LIMITS.send_pool)
    senders = greedy(pool, 40)
    shells = [sender.stream() for sender in senders]
    with trio.move_on_after(6.5):
        await relieve_send_pool(pool, lambda: senders, LIMITS)
    ends = [[stream.reset_reason for stream in sender.mux_streams] for sender in senders]
    gone = [reasons for reasons in ends if reasons[0] is Reason.STALLED_UNDER_PRESSURE]
    assert not pool.is_short
    assert 0 < len(gone) < 40
    assert all(shell.reset_reason is None for shell in shells)
