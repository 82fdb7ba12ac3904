"""The mux against a slow and plain model: two ends, delayed packets, users who do anything."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.fakes.muxes import LIMITS, REQUEST, as_read, move, opened
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import Receipt, StreamState
from tunnel_core.reasons import Reason, Refused
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Credit, Data, Frame, Open, Opened, Reset


class Half:
    """One direction of one stream in the model: the bytes sent and the bytes received."""

    def __init__(self) -> None:
        self.pushed = bytearray()
        self.read = bytearray()
        self.ended = False
        self.broken = False  # by a reset of either side: what was read must still be a prefix


class End2:
    """One end: its mux, the packets on their way to the other end, and the receipts they wait for."""

    def __init__(self, *, opener: bool) -> None:
        self.pool = CreditPool(LIMITS.credit_pool)
        self.accepted: list[StreamState] = []
        self.mux = Mux(LIMITS, self.pool, opener=opener, on_open=self.accepted.append)
        self.mux.peer_max_streams = LIMITS.max_streams
        self.sent: deque[list[Frame]] = deque()
        self.waiting: deque[list[Receipt]] = deque()  # in the order sent
        self.receipts_due = 0


class TwoEnds(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.server, self.agent = End2(opener=True), End2(opener=False)
        self.pairs: list[tuple[StreamState, StreamState | None]] = []
        self.halves: dict[int, tuple[Half, Half]] = {}  # by index: to the agent, to the server

    def _streams(self, index: int) -> tuple[StreamState, StreamState | None]:
        return self.pairs[index % len(self.pairs)]

    def _half(self, index: int, *, from_server: bool) -> Half:
        return self.halves[index % len(self.pairs)][0 if from_server else 1]

    # Users.

    @precondition(lambda self: len(self.pairs) < 12)
    @rule(early=st.binary(max_size=20))
    def open(self, early: bytes) -> None:
        try:
            stream = self.server.mux.open(REQUEST)
        except Refused as refused:
            assert refused.reason is Reason.TOO_MANY_STREAMS
            assert len(self.server.mux.streams) + len(self.server.mux._unopened) >= LIMITS.max_streams
            return
        self.pairs.append((stream, None))
        self.halves[len(self.pairs) - 1] = (Half(), Half())
        if early:
            stream.push(early)
            self.halves[len(self.pairs) - 1][0].pushed += early

    @precondition(lambda self: self.pairs)
    @rule(index=st.integers(0, 11), data=st.binary(min_size=1, max_size=90), from_server=st.booleans())
    def push(self, index: int, data: bytes, from_server: bool) -> None:
        stream = self._streams(index)[0 if from_server else 1]
        if stream is not None and stream.can_send and stream.send.room > 0:
            stream.push(data)
            self._half(index, from_server=from_server).pushed += data

    @precondition(lambda self: self.pairs)
    @rule(index=st.integers(0, 11), size=st.integers(1, 100), from_server=st.booleans())
    def read(self, index: int, size: int, from_server: bool) -> None:
        stream = self._streams(index)[1 if from_server else 0]
        if stream is not None and stream.recv.buffered:
            self._half(index, from_server=from_server).read += stream.read(size)

    @precondition(lambda self: self.pairs)
    @rule(index=st.integers(0, 11), from_server=st.booleans())
    def end(self, index: int, from_server: bool) -> None:
        stream = self._streams(index)[0 if from_server else 1]
        if stream is not None and stream.can_send:
            stream.end()
            self._half(index, from_server=from_server).ended = True

    @precondition(lambda self: self.pairs)
    @rule(index=st.integers(0, 11), from_server=st.booleans())
    def reset(self, index: int, from_server: bool) -> None:
        stream = self._streams(index)[0 if from_server else 1]
        if stream is not None:
            stream.reset(Reason.USER_LEFT, "")
            for half in self.halves[index % len(self.pairs)]:
                half.broken = True

    @precondition(lambda self: self.agent.accepted)
    @rule(accept=st.booleans())
    def answer(self, accept: bool) -> None:
        stream = self.agent.accepted.pop(0)
        index = next(i for i, (near, _) in enumerate(self.pairs) if near.number == stream.number)
        self.pairs[index] = (self.pairs[index][0], stream)
        if stream.reset_reason is None and not accept:
            stream.refuse(Refused(Reason.DIAL_REFUSED, "no"))
            for half in self.halves[index]:
                half.broken = True
        elif stream.reset_reason is None:
            stream.accept("127.0.0.1:22")

    # The link.

    @rule(from_server=st.booleans(), bulk=st.integers(0, 200), priority=st.integers(0, 200))
    def send(self, from_server: bool, bulk: int, priority: int) -> None:
        self._send(self.server if from_server else self.agent, bulk, priority)

    def _send(self, end: End2, bulk: int, priority: int) -> bool:
        before = end.mux.unacked_bytes
        frames, receipt = end.mux.take(bulk, priority)
        frames = list(map(as_read, frames))
        assert end.mux.unacked_bytes - before <= max(bulk, priority)
        assert priority or not end.mux.urgent, "control waits for the next packet at most, and for no budget"
        assert end.mux.unacked_bytes <= LIMITS.max_send_memory
        if frames:
            end.sent.append(frames)
            end.waiting.append(receipt)
        return bool(frames)

    @rule(from_server=st.booleans())
    def deliver(self, from_server: bool) -> None:
        self._deliver(from_server)

    def _deliver(self, from_server: bool) -> bool:
        end, other = (self.server, self.agent) if from_server else (self.agent, self.server)
        if not end.sent:
            return False
        for frame in end.sent.popleft():
            other.mux.receive(frame)
        end.receipts_due += 1
        return True

    @rule(from_server=st.booleans())
    def acknowledge(self, from_server: bool) -> None:
        self._acknowledge(self.server if from_server else self.agent)

    def _acknowledge(self, end: End2) -> bool:
        if not end.receipts_due:
            return False
        end.receipts_due -= 1
        end.mux.acked(end.waiting.popleft())
        return True

    # What must hold.

    @invariant()
    def what_was_read_is_a_prefix_of_what_was_pushed(self) -> None:
        for halves in getattr(self, "halves", {}).values():
            for half in halves:
                assert half.pushed.startswith(half.read)

    @invariant()
    def memory_is_bounded(self) -> None:
        for end in (getattr(self, "server", None), getattr(self, "agent", None)):
            if end is None:
                continue
            assert 0 <= end.mux.unacked_bytes <= LIMITS.max_send_memory
            assert 0 <= end.pool.granted <= LIMITS.credit_pool
            for stream in end.mux.streams.values():
                assert stream.recv.buffered <= stream.recv.window <= LIMITS.max_credit
                assert stream.send.sent <= stream.send.limit
                assert stream.listed == (stream in end.mux._scheduler.new) + (
                    stream in end.mux._scheduler.old
                )

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        self._settle()
        for index, (near, far) in enumerate(self.pairs):
            for from_server, half in zip((True, False), self.halves[index], strict=True):
                reader = far if from_server else near
                if not half.broken and reader is not None:
                    assert half.read == half.pushed, "everything pushed arrives"
                    assert reader.recv.at_end == half.ended
        self._end_everything()
        assert not self.server.mux.streams and not self.agent.mux.streams
        assert self.server.mux.unacked_bytes == self.agent.mux.unacked_bytes == 0
        assert self.server.pool.granted == self.agent.pool.granted == 0

    def _settle(self) -> None:
        """Read at both ends and move packets until nothing changes: no stuck state."""
        for _ in range(10_000):
            moved = [self._send(end, 100, 100) for end in (self.server, self.agent)]
            moved += [self._deliver(True), self._deliver(False)]
            moved += [self._acknowledge(self.server), self._acknowledge(self.agent)]
            while self.agent.accepted:
                self.answer(True)
            for index, pair in enumerate(self.pairs):
                for stream, half in zip(reversed(pair), self.halves[index], strict=True):
                    while stream is not None and stream.recv.buffered:
                        half.read += stream.read(1000)
                        moved.append(True)
            if not any(moved):
                return
        raise AssertionError("the link never came to rest")

    def _end_everything(self) -> None:
        for index in range(len(self.pairs)):
            self.end(index, True)
            self.end(index, False)
        self._settle()


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_early_data_beyond_the_credit_refuses_the_stream_alone() -> None:
    opened: list[StreamState] = []
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=opened.append)
    agent.receive(REQUEST._replace(stream=1, early_data=b"e" * (LIMITS.initial_credit + 1)))
    assert not opened
    refusal = agent.streams[1].refusal
    assert refusal is not None and refusal.reason is Reason.CREDIT_OVERRUN


@pytest.mark.parametrize("frame", [Credit(99, 1), Data(3, 0, b"x"), Reset(2, Reason.DONE), Opened(99, 1)])
def test_a_stream_never_opened_is_a_fault(frame: Frame) -> None:
    server, agent, *_ = opened()
    for mux in (server, agent):
        with pytest.raises(ProtocolError) as caught:
            mux.receive(frame)
        assert caught.value.reason is Reason.STREAM_NEVER_OPENED


def test_a_late_frame_is_ignored() -> None:
    server, agent, near, far = opened()
    near.end()
    far.end()
    for _ in range(3):
        move(server, agent)
        move(agent, server)
    assert not server.streams and not agent.streams
    server.receive(Credit(near.number, 10**6))
    agent.receive(Data(far.number, 0, b"late"))


def test_an_open_sent_twice_opens_once() -> None:
    _, agent, _, far = opened()
    agent.receive(REQUEST._replace(stream=far.number, early_data=b"again"))
    assert len(agent.streams) == 1


def test_opens_beyond_the_limit_are_refused() -> None:
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=lambda _: None)
    for number in range(1, 2 * LIMITS.max_streams + 3, 2):
        agent.receive(REQUEST._replace(stream=number))
    refused = [stream.refusal for stream in agent.streams.values() if stream.refusal]
    assert [r.reason for r in refused] == [Reason.TOO_MANY_STREAMS]


def test_a_flood_of_opens_is_a_fault() -> None:
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=lambda _: None)
    with pytest.raises(ProtocolError) as caught:
        for number in range(1, 100, 2):
            agent.receive(REQUEST._replace(stream=number))
    assert caught.value.reason is Reason.OPEN_FLOOD


def test_the_agent_opens_nothing() -> None:
    server, *_ = opened()
    with pytest.raises(ProtocolError) as caught:
        server.receive(REQUEST._replace(stream=2))
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_users_who_leave_before_their_open_was_sent_leave_nothing() -> None:
    server = Mux(LIMITS, CreditPool(1 << 20), opener=True)
    kept = server.open(REQUEST)
    for _ in range(1000):
        stream = server.open(REQUEST, b"e" * 64)
        stream.reset(Reason.USER_LEFT, "")
        assert not stream.can_send and not stream.send.queued
    assert len(server._control) == 1
    assert [type(frame) for frame in server.take(1000, 1000)[0]] == [Open]
    assert list(server.streams.values()) == [kept]


def test_a_lone_user_takes_half_of_the_streams_and_others_get_in() -> None:
    server = Mux(Limits(max_streams=8, max_streams_per_user=2), CreditPool(0), opener=True)
    for _ in range(4):
        server.open(REQUEST._replace(user="mallory"))
    with pytest.raises(Refused) as caught:
        server.open(REQUEST._replace(user="mallory"))
    assert caught.value.reason is Reason.TOO_MANY_OF_USER
    assert "mallory has 4 streams on this node and 4 are free: one user may have 2" in caught.value.detail
    for user in ("alice", "bob"):
        server.open(REQUEST._replace(user=user))
        server.open(REQUEST._replace(user=user))
    with pytest.raises(Refused) as caught:
        server.open(REQUEST._replace(user="carol"))
    assert caught.value.reason is Reason.TOO_MANY_STREAMS


def test_a_user_has_its_share_beside_others_and_no_more() -> None:
    server = Mux(Limits(max_streams=8, max_streams_per_user=2), CreditPool(0), opener=True)
    mallory, alice = REQUEST._replace(user="mallory"), REQUEST._replace(user="alice")
    for number in range(4):
        server.open(REQUEST._replace(user=f"user {number}"))
    first, second = server.open(mallory), server.open(mallory)
    with pytest.raises(Refused) as caught:
        server.open(mallory)
    assert caught.value.reason is Reason.TOO_MANY_OF_USER and "max_streams_per_user" in caught.value.detail
    server.open(alice)
    server.withdraw(first)
    third = server.open(mallory)
    _, receipt = server.take(10_000, 10_000)
    second.reset(Reason.USER_LEFT, "")
    with pytest.raises(Refused):
        server.open(mallory)  # the peer has not acknowledged that the stream is gone
    _, more = server.take(10_000, 10_000)
    server.acked(receipt + more)
    server.receive(Reset(second.number, Reason.USER_LEFT, ""))
    server.open(mallory)
    third.reset(Reason.USER_LEFT, "")
    server.fail(Reason.SESSION_LOST, "")
    assert server._streams_of_user == {}
