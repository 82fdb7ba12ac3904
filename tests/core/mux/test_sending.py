"""The content of a packet: control and ends, early data, keystrokes beside bulk, within two budgets."""

from __future__ import annotations

from collections import Counter

from tests.support.fakes.muxes import LIMITS, REQUEST, as_read, move, opened
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.wire.frames import Credit, Data, End, Open, Opened, Reset, Stop


def test_a_stream_that_is_reset_before_its_open_was_sent_makes_nothing_urgent() -> None:
    mux = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=True)
    mux.open(REQUEST).reset(Reason.USER_LEFT, "")
    assert mux.take(0, 0) == ([], [])
    assert not mux.urgent


def test_a_receipt_after_the_reset_frees_nothing_twice() -> None:
    server, agent, near, _ = opened()
    near.push(b"x" * 50)
    frames, receipt = server.take(10_000, 10_000)
    assert server.unacked_bytes == 50
    near.reset(Reason.USER_LEFT, "")
    assert server.unacked_bytes == 0
    for frame in frames:
        agent.receive(frame)
    server.acked(receipt)
    assert server.unacked_bytes == 0
    assert [type(frame) for frame in move(server, agent)] == [Reset, Stop]


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
    while frames := list(map(as_read, server.take(1 << 20, 1 << 20)[0])):
        counts.append(len(frames))
        kinds.update(map(type, frames))
        size += sum(len(frame.payload) for frame in frames if isinstance(frame, Data))
    assert size == 40 * 30 * 2048
    assert kinds[Stop] == kinds[End] == 40
    assert max(counts) < limits.max_frames_per_packet


LARGE = Limits(max_packet_bytes=1 << 20)


def _two_streams() -> tuple[Mux, StreamState, StreamState]:
    server = Mux(LARGE, CreditPool(LARGE.credit_pool), opener=True)
    streams = [server.open(REQUEST) for _ in range(2)]
    server.acked(server.take(10_000, 10_000)[1])
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
        for frame in map(as_read, server.take(16 * 1024, 16 * 1024)[0]):
            assert isinstance(frame, Data)
            sent[frame.stream] += len(frame.payload)
    assert sent[bulk.number] > sum(sent.values()) / 4


def test_bulk_shares_evenly() -> None:
    server, one, two = _two_streams()
    one.push(b"1" * (1 << 20))
    two.push(b"2" * (1 << 20))
    sent = {one.number: 0, two.number: 0}
    for _ in range(16):
        for frame in map(as_read, server.take(64 * 1024, 64 * 1024)[0]):
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


def _sent_of(server: Mux, bulk: int, priority: int) -> dict[int, int]:
    sent: dict[int, int] = {}
    for frame in map(as_read, server.take(bulk, priority)[0]):
        if isinstance(frame, Data):
            sent[frame.stream] = sent.get(frame.stream, 0) + len(frame.payload)
    return sent


def test_a_full_window_holds_bulk_and_lets_a_keystroke_pass() -> None:
    server, bulk, keys = _two_streams()
    bulk.push(b"b" * (1 << 20))
    server.take(64 * 1024, 64 * 1024)
    keys.push(b"k")
    assert _sent_of(server, 0, 4096) == {keys.number: 1}
    assert _sent_of(server, 0, 4096) == {}
    assert server.has_data and not server.may_send(0, 4096) and server.may_send(1, 0)


def test_priority_bytes_count_as_content_too() -> None:
    server, bulk, keys = _two_streams()
    bulk.push(b"b" * (1 << 20))
    server.take(64 * 1024, 64 * 1024)
    keys.push(b"k" * 1000)
    assert _sent_of(server, 4096, 4096) == {keys.number: 1000, bulk.number: 3096}


def test_new_bulk_alone_has_no_priority_for_long() -> None:
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
    assert len(frames) == 1 and as_read(frames[0]) == Data(bulk.number, 0, b"b" * 512 * 1024)


def test_turns_are_as_short_as_packets() -> None:
    """Otherwise each stream would hold a slow link for a quarter of a megabyte, which is a second."""
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
