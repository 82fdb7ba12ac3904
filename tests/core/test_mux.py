"""The mux against a slow obvious model: two ends, packets that take their time, users who do anything."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tunnel_core.credit import CreditPool
from tunnel_core.errors import PeerFault
from tunnel_core.frames import Credit, Data, DataParts, End, Frame, Open, Opened, RefusedFrame, Reset, Stop
from tunnel_core.limits import Limits
from tunnel_core.mux import Mux
from tunnel_core.mux_stream import MuxStream, Receipt
from tunnel_core.reasons import Reason, Refused

LIMITS = Limits(
    initial_credit=64,
    max_credit=256,
    credit_pool=2048,
    max_streams=6,
    early_data=16,
    max_send_memory=512,
    max_stream_queue=128,
)
REQUEST = Open(0, "localhost:22", "operator", "tcp", 0)


def _as_read(frame: Frame) -> Frame:
    """What the peer makes of a frame."""
    return frame.joined() if isinstance(frame, DataParts) else frame


class Half:
    """One direction of one stream as the model sees it: what went in, what came out."""

    def __init__(self) -> None:
        self.pushed = bytearray()
        self.read = bytearray()
        self.ended = False
        self.broken = False  # by a reset of either side: what was read must still be a prefix


class End2:
    """One end: its mux, the packets on their way to the other end, and the receipts they wait for."""

    def __init__(self, *, opener: bool) -> None:
        self.pool = CreditPool(LIMITS.credit_pool)
        self.accepted: list[MuxStream] = []
        self.mux = Mux(LIMITS, self.pool, opener=opener, on_open=self.accepted.append)
        self.mux.peer_max_streams = LIMITS.max_streams
        self.sent: deque[list[Frame]] = deque()
        self.waiting: deque[list[Receipt]] = deque()  # in the order sent
        self.confirmable = 0


class TwoEnds(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.server, self.agent = End2(opener=True), End2(opener=False)
        self.pairs: list[tuple[MuxStream, MuxStream | None]] = []
        self.halves: dict[int, tuple[Half, Half]] = {}  # by index: to the agent, to the server

    def _streams(self, index: int) -> tuple[MuxStream, MuxStream | None]:
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

    @rule(from_server=st.booleans(), bulk=st.integers(0, 200), quick=st.integers(0, 200))
    def send(self, from_server: bool, bulk: int, quick: int) -> None:
        self._send(self.server if from_server else self.agent, bulk, quick)

    def _send(self, end: End2, bulk: int, quick: int) -> bool:
        before = end.mux.unconfirmed
        frames, receipt = end.mux.take(bulk, quick)
        frames = list(map(_as_read, frames))
        assert end.mux.unconfirmed - before <= max(bulk, quick)
        assert quick or not end.mux.presses, "control waits for the next packet at most, and for no budget"
        assert end.mux.unconfirmed <= LIMITS.max_send_memory
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
        end.confirmable += 1
        return True

    @rule(from_server=st.booleans())
    def confirm(self, from_server: bool) -> None:
        self._confirm(self.server if from_server else self.agent)

    def _confirm(self, end: End2) -> bool:
        if not end.confirmable:
            return False
        end.confirmable -= 1
        end.mux.confirmed(end.waiting.popleft())
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
            assert 0 <= end.mux.unconfirmed <= LIMITS.max_send_memory
            assert 0 <= end.pool.granted <= LIMITS.credit_pool
            for stream in end.mux.streams.values():
                assert stream.recv.buffered <= stream.recv.window <= LIMITS.max_credit
                assert stream.send.sent <= stream.send.limit
                assert stream.listed == (stream in end.mux._turns.new) + (stream in end.mux._turns.old)

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
        assert self.server.mux.unconfirmed == self.agent.mux.unconfirmed == 0
        assert self.server.pool.granted == self.agent.pool.granted == 0

    def _settle(self) -> None:
        """Everybody reads and the link moves until nothing changes: no stuck state."""
        for _ in range(10_000):
            moved = [self._send(end, 100, 100) for end in (self.server, self.agent)]
            moved += [self._deliver(True), self._deliver(False)]
            moved += [self._confirm(self.server), self._confirm(self.agent)]
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


def _opened() -> tuple[Mux, Mux, MuxStream, MuxStream]:
    accepted: list[MuxStream] = []
    server = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=True)
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=accepted.append)
    near = server.open(REQUEST)
    _move(server, agent)
    accepted[0].accept("")
    _move(agent, server)
    return server, agent, near, accepted[0]


def test_a_stream_that_is_reset_before_its_open_left_presses_for_nothing() -> None:
    mux = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=True)
    mux.open(REQUEST).reset(Reason.USER_LEFT, "")
    assert mux.take(0, 0) == ([], [])
    assert not mux.presses


def _move(source: Mux, sink: Mux) -> list[Frame]:
    frames, receipt = source.take(10_000, 10_000)
    frames = list(map(_as_read, frames))
    for frame in frames:
        sink.receive(frame)
    source.confirmed(receipt)
    return frames


def test_credit_overrun_resets_the_stream() -> None:
    _, agent, _, far = _opened()
    agent.receive(Data(far.number, 0, b"x" * (LIMITS.initial_credit + 1)))
    assert far.reset_reason is Reason.CREDIT_OVERRUN


def test_early_data_beyond_the_credit_refuses_the_stream_alone() -> None:
    opened: list[MuxStream] = []
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=opened.append)
    agent.receive(REQUEST._replace(stream=1, early_data=b"e" * (LIMITS.initial_credit + 1)))
    assert not opened
    refusal = agent.streams[1].refusal
    assert refusal is not None and refusal.reason is Reason.CREDIT_OVERRUN


def test_a_peer_that_sends_on_beyond_its_credit_after_a_stop_is_at_fault() -> None:
    _, agent, _, far = _opened()
    far.stop_reading()
    agent.receive(Data(far.number, 0, b"x" * LIMITS.initial_credit))
    with pytest.raises(PeerFault) as caught:
        agent.receive(Data(far.number, LIMITS.initial_credit, b"x"))
    assert caught.value.reason is Reason.CREDIT_OVERRUN
    assert not caught.value.stream_only


@pytest.mark.parametrize(
    "leave",
    [lambda _, far: far.stop_reading(), lambda agent, far: agent.receive(End(1, far.recv.received))],
)
def test_a_grown_window_goes_back_to_the_pool_when_nothing_more_will_be_held(
    leave: Callable[[Mux, MuxStream], None],
) -> None:
    _, agent, _, far = _opened()
    _grow_window(agent, far)
    assert agent.pool.granted > 0
    leave(agent, far)
    assert agent.pool.granted == 0
    assert agent.streams, "the other half is open"


def test_data_after_the_end_resets_the_stream() -> None:
    _, agent, _, far = _opened()
    agent.receive(End(far.number, 0))
    agent.receive(Data(far.number, 0, b"more"))
    assert far.reset_reason is Reason.DATA_AFTER_END


@pytest.mark.parametrize("second", [End(1, 3), End(1, 5)])
def test_two_ends_that_differ_reset_the_stream(second: End) -> None:
    _, agent, _, far = _opened()
    agent.receive(Data(far.number, 0, b"abcd"))
    agent.receive(End(far.number, 4))
    agent.receive(End(far.number, 4))
    assert far.reset_reason is None
    agent.receive(second)
    assert far.reset_reason is Reason.DATA_AFTER_END


def test_an_end_after_data_that_never_came_is_a_fault_of_the_session() -> None:
    _, agent, _, far = _opened()
    with pytest.raises(PeerFault) as caught:
        agent.receive(End(far.number, 4))
    assert caught.value.reason is Reason.DATA_GAP


def test_the_server_answers_no_open() -> None:
    _, agent, _, far = _opened()
    for frame in (Opened(far.number, 0), RefusedFrame(far.number, Reason.DIAL_REFUSED, "")):
        with pytest.raises(PeerFault) as caught:
            agent.receive(frame)
        assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_an_open_stream_cannot_be_refused() -> None:
    server, _, near, _ = _opened()
    with pytest.raises(PeerFault) as caught:
        server.receive(RefusedFrame(near.number, Reason.DIAL_REFUSED, ""))
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_an_agent_cannot_refuse_with_a_reason_of_the_server() -> None:
    server = Mux(LIMITS, CreditPool(0), opener=True)
    stream = server.open(REQUEST)
    server.take(10_000, 10_000)
    server.receive(RefusedFrame(stream.number, Reason.TOO_MANY_OF_USER, "made up"))
    assert stream.refusal is not None and stream.refusal.reason is Reason.DIAL_FAILED
    assert stream.refusal.detail == (
        "the agent refused the stream with the reason too_many_of_user, which an agent may not give"
    )


def test_a_stop_that_crosses_the_end_changes_nothing() -> None:
    server, agent, near, far = _opened()
    near.push(b"all of it")
    near.end()
    frames, receipt = server.take(10_000, 10_000)  # the end is on its way
    far.stop_reading()
    _move(agent, server)
    for frame in frames:
        agent.receive(frame)
    server.confirmed(receipt)
    assert near.reset_reason is None and not near.send_reset
    far.end()
    _move(agent, server)
    assert not server.streams and not agent.streams


def test_a_receipt_after_the_reset_frees_nothing_twice() -> None:
    server, agent, near, _ = _opened()
    near.push(b"x" * 50)
    frames, receipt = server.take(10_000, 10_000)
    assert server.unconfirmed == 50
    near.reset(Reason.USER_LEFT, "")
    assert server.unconfirmed == 0
    for frame in frames:
        agent.receive(frame)
    server.confirmed(receipt)
    assert server.unconfirmed == 0
    assert [type(frame) for frame in _move(server, agent)] == [Reset, Stop]


def test_a_gap_is_a_fault_of_the_session() -> None:
    _, agent, _, far = _opened()
    with pytest.raises(PeerFault) as caught:
        agent.receive(Data(far.number, 5, b"x"))
    assert caught.value.reason is Reason.DATA_GAP


@pytest.mark.parametrize("frame", [Credit(99, 1), Data(3, 0, b"x"), Reset(2, Reason.DONE), Opened(99, 1)])
def test_a_stream_never_opened_is_a_fault(frame: Frame) -> None:
    server, agent, *_ = _opened()
    for mux in (server, agent):
        with pytest.raises(PeerFault) as caught:
            mux.receive(frame)
        assert caught.value.reason is Reason.STREAM_NEVER_OPENED


def test_a_late_frame_is_ignored() -> None:
    server, agent, near, far = _opened()
    near.end()
    far.end()
    for _ in range(3):
        _move(server, agent)
        _move(agent, server)
    assert not server.streams and not agent.streams
    server.receive(Credit(near.number, 10**6))
    agent.receive(Data(far.number, 0, b"late"))


def test_an_open_said_twice_opens_once() -> None:
    _, agent, _, far = _opened()
    agent.receive(REQUEST._replace(stream=far.number, early_data=b"again"))
    assert len(agent.streams) == 1


def test_data_said_twice_is_read_once() -> None:
    _, agent, _, far = _opened()
    agent.receive(Data(far.number, 0, b"abcd"))
    agent.receive(Data(far.number, 2, b"cdef"))
    assert b"".join(bytes(far.read(10)) for _ in range(2)) == b"abcdef"


def test_opens_beyond_the_limit_are_refused() -> None:
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=lambda _: None)
    for number in range(1, 2 * LIMITS.max_streams + 3, 2):
        agent.receive(REQUEST._replace(stream=number))
    refused = [stream.refusal for stream in agent.streams.values() if stream.refusal]
    assert [r.reason for r in refused] == [Reason.TOO_MANY_STREAMS]


def test_a_flood_of_opens_is_a_fault() -> None:
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=lambda _: None)
    with pytest.raises(PeerFault) as caught:
        for number in range(1, 100, 2):
            agent.receive(REQUEST._replace(stream=number))
    assert caught.value.reason is Reason.OPEN_FLOOD


def test_the_agent_opens_nothing() -> None:
    server, *_ = _opened()
    with pytest.raises(PeerFault) as caught:
        server.receive(REQUEST._replace(stream=2))
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_users_who_leave_before_their_open_left_leave_nothing() -> None:
    server = Mux(LIMITS, CreditPool(1 << 20), opener=True)
    kept = server.open(REQUEST)
    for _ in range(1000):
        stream = server.open(REQUEST, b"e" * 64)
        stream.reset(Reason.USER_LEFT, "")
        assert not stream.can_send and not stream.send.queued
    assert len(server._control) == 1
    assert [type(frame) for frame in server.take(1000, 1000)[0]] == [Open]
    assert list(server.streams.values()) == [kept]


def test_early_data_of_many_opens_keeps_to_the_size_of_a_packet() -> None:
    server = Mux(Limits(max_streams_per_user=500), CreditPool(1 << 20), opener=True)
    for _ in range(500):
        server.open(REQUEST, b"e" * 16_384)
    sizes = []
    while frames := server.take(1 << 20, 1 << 20)[0]:
        sizes.append(sum(len(frame.early_data) for frame in frames if isinstance(frame, Open)))
    assert sum(sizes) == 500 * 16_384
    assert max(sizes) <= (1 << 20) + 16_384


def test_a_packet_never_has_more_frames_than_are_read() -> None:
    limits = Limits(max_frames_per_packet=64)
    server = Mux(limits, CreditPool(1 << 20), opener=True)
    streams = [server.open(REQUEST) for _ in range(40)]
    while server.take(1 << 20, 1 << 20)[0]:
        pass
    for stream in streams:
        for _ in range(30):
            stream.push(b"d" * 2048)  # too large to be joined
        stream.stop_reading()
        stream.end()
    counts, kinds, size = [], Counter[type](), 0
    while frames := list(map(_as_read, server.take(1 << 20, 1 << 20)[0])):
        counts.append(len(frames))
        kinds.update(map(type, frames))
        size += sum(len(frame.payload) for frame in frames if isinstance(frame, Data))
    assert size == 40 * 30 * 2048
    assert kinds[Stop] == kinds[End] == 40
    assert max(counts) < limits.max_frames_per_packet


LARGE = Limits(max_packet_bytes=1 << 20)


def _two_streams() -> tuple[Mux, MuxStream, MuxStream]:
    server = Mux(LARGE, CreditPool(LARGE.credit_pool), opener=True)
    streams = [server.open(REQUEST) for _ in range(2)]
    server.confirmed(server.take(10_000, 10_000)[1])
    for stream in streams:
        server.receive(Opened(stream.number, 10**9))
    return server, streams[0], streams[1]


def test_a_keystroke_overtakes_bulk() -> None:
    server, bulk, keys = _two_streams()
    bulk.push(b"b" * (1 << 20))
    server.take(64 * 1024, 64 * 1024)
    keys.push(b"k")
    assert server.take(64 * 1024, 64 * 1024)[0][0] == Data(keys.number, 0, b"k")


def test_bulk_in_small_writes_cannot_pose_as_keystrokes() -> None:
    server, bulk, sly = _two_streams()
    bulk.push(b"b" * (1 << 20))
    sent = {bulk.number: 0, sly.number: 0}
    for _ in range(64):
        sly.push(b"s" * 16_000)
        for frame in map(_as_read, server.take(16 * 1024, 16 * 1024)[0]):
            assert isinstance(frame, Data)
            sent[frame.stream] += len(frame.payload)
    assert sent[bulk.number] > sum(sent.values()) / 4


def test_bulk_shares_evenly() -> None:
    server, one, two = _two_streams()
    one.push(b"1" * (1 << 20))
    two.push(b"2" * (1 << 20))
    sent = {one.number: 0, two.number: 0}
    for _ in range(16):
        for frame in map(_as_read, server.take(64 * 1024, 64 * 1024)[0]):
            assert isinstance(frame, Data)
            sent[frame.stream] += len(frame.payload)
    assert abs(sent[one.number] - sent[two.number]) <= 128 * 1024


def test_tiny_writes_are_joined() -> None:
    server, stream, _ = _two_streams()
    for _ in range(1000):
        stream.push(b"x")
    (frame,) = server.take(64 * 1024, 64 * 1024)[0]
    assert isinstance(frame, Data)
    assert len(frame.payload) == 1000


def test_tiny_data_that_nobody_reads_is_joined() -> None:
    _, agent, _, far = _opened()
    for offset in range(LIMITS.initial_credit):
        agent.receive(Data(far.number, offset, b"x"))
    assert len(far.recv.inbox) <= 2


def _grow_window(agent: Mux, far: MuxStream) -> None:
    for _ in range(40):
        agent.receive(Data(far.number, far.recv.received, b"x" * 16))
        while far.recv.buffered:
            far.read(1000)


def test_credit_grows_for_a_reader_that_keeps_up_and_not_for_one_that_does_not() -> None:
    _, agent, _, far = _opened()
    _grow_window(agent, far)
    assert far.recv.window == LIMITS.max_credit


# The two budgets.


def _sent_of(server: Mux, bulk: int, quick: int) -> dict[int, int]:
    sent: dict[int, int] = {}
    for frame in map(_as_read, server.take(bulk, quick)[0]):
        if isinstance(frame, Data):
            sent[frame.stream] = sent.get(frame.stream, 0) + len(frame.payload)
    return sent


def test_a_full_flight_holds_bulk_and_lets_a_keystroke_pass() -> None:
    server, bulk, keys = _two_streams()
    bulk.push(b"b" * (1 << 20))
    server.take(64 * 1024, 64 * 1024)
    keys.push(b"k")
    assert _sent_of(server, 0, 4096) == {keys.number: 1}
    assert _sent_of(server, 0, 4096) == {}
    assert server.has_data and not server.may_send(0, 4096) and server.may_send(1, 0)


def test_what_is_quick_counts_as_content_too() -> None:
    server, bulk, keys = _two_streams()
    bulk.push(b"b" * (1 << 20))
    server.take(64 * 1024, 64 * 1024)
    keys.push(b"k" * 1000)
    assert _sent_of(server, 4096, 4096) == {keys.number: 1000, bulk.number: 3096}


def test_bulk_alone_and_new_is_not_quick_for_long() -> None:
    server, bulk, _ = _two_streams()
    bulk.push(b"b" * (1 << 20))
    taken = 0
    while sent := _sent_of(server, 0, 4096):
        taken += sent[bulk.number]
    assert taken == 4096
    assert _sent_of(server, 64 * 1024, 4096) == {bulk.number: 64 * 1024}


def test_bulk_alone_and_new_goes_in_one_piece_where_there_is_room() -> None:
    server, bulk, _ = _two_streams()
    bulk.push(b"b" * (1 << 20))
    frames = server.take(512 * 1024, 512 * 1024)[0]
    assert len(frames) == 1 and _as_read(frames[0]) == Data(bulk.number, 0, b"b" * 512 * 1024)


def test_turns_are_as_short_as_packets() -> None:
    """Else each stream would hold a slow link for a quarter of a megabyte, which is a second."""
    server, one, two = _two_streams()
    one.push(b"1" * (1 << 20))
    two.push(b"2" * (1 << 20))
    sent = {one.number: 0, two.number: 0}
    for _ in range(20):
        for number, count in _sent_of(server, 4096, 4096).items():
            sent[number] += count
    assert abs(sent[one.number] - sent[two.number]) <= 16 * 1024


def test_an_end_waits_for_no_budget() -> None:
    server, bulk, other = _two_streams()
    bulk.push(b"b" * (1 << 20))
    server.take(64 * 1024, 64 * 1024)
    other.end()
    assert server.take(0, 0)[0] == [End(other.number, 0)]
    assert server.take(0, 0)[0] == []


def test_credit_for_a_stream_at_its_end_queues_nothing_twice() -> None:
    server, stream, _ = _two_streams()
    stream.end()
    for limit in range(100):
        server.receive(Credit(stream.number, 10**9 + limit + 1))
    assert server.take(0, 0)[0] == [End(stream.number, 0)]


def test_an_open_goes_bare_where_nothing_may_leave() -> None:
    server = Mux(LARGE, CreditPool(LARGE.credit_pool), opener=True)
    stream = server.open(REQUEST, b"early")
    frames = server.take(0, 0)[0]
    assert [type(frame) for frame in frames] == [Open] and not frames[0].early_data  # type: ignore[union-attr]
    assert _sent_of(server, 100, 100) == {stream.number: 5}


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
        server.open(mallory)  # the peer has not confirmed that it is gone
    _, more = server.take(10_000, 10_000)
    server.confirmed(receipt + more)
    server.receive(Reset(second.number, Reason.USER_LEFT, ""))
    server.open(mallory)
    third.reset(Reason.USER_LEFT, "")
    server.fail(Reason.SESSION_LOST, "")
    assert server._of_user == {}
