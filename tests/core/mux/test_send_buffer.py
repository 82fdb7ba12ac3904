"""The send buffer of a stream: what it queues, sends, retains, and retransmits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.limits import Limits
from tunnel_core.mux.send_buffer import SendBuffer

LIMITS = Limits(max_stream_queue=128 * 1024)


def _half(credit: int = 1000) -> SendBuffer:
    return SendBuffer(credit, LIMITS)


def _is_ready(send: SendBuffer) -> bool:
    """Whether there is data that the credit lets us send."""
    return send.queued > 0 and send.sent < send.limit


def _joined(parts: list[bytes | bytearray | memoryview]) -> bytes:
    return b"".join(parts)


def test_no_more_than_the_credit_is_taken() -> None:
    send = _half(credit=3)
    send.push(b"abcde")
    assert _joined(send.take(100)) == b"abc"
    assert not _is_ready(send) and send.queued == 2
    send.limit = 5
    assert _is_ready(send) and _joined(send.take(100)) == b"de"


def test_small_pieces_are_joined_and_large_ones_are_not() -> None:
    send = _half(credit=1 << 20)
    for _ in range(10):
        send.push(b"x" * 10)
    assert send.take(1 << 20) == [b"x" * 100]
    large = [b"y" * 10_000, b"z" * 10_000]
    for piece in large:
        send.push(piece)
    assert send.take(1 << 20) == large


def test_sent_bytes_are_retained_until_they_are_acknowledged() -> None:
    send = _half()
    send.push(b"abcdef")
    send.take(4)
    assert (send.retained_bytes, send.queued) == (4, 2)
    assert send.ack(3) == 3
    assert send.ack(3) == 0, "acknowledged twice"
    assert send.retained_bytes == 1


def test_unacknowledged_bytes_are_retransmitted() -> None:
    send = _half()
    send.push(b"abcdef")
    send.take(4)
    send.ack(1)
    assert send.take_back() == 3
    assert (send.sent, send.max_sent, send.queued, send.retained_bytes) == (1, 4, 5, 3)
    assert _joined(send.take(100)) == b"bcdef"
    assert send.max_sent == 6


def test_room_counts_each_piece_that_waits() -> None:
    send = _half(credit=0)
    before = send.room
    send.push(b"x")
    assert send.room < before - 1
    while send.room > 0:
        send.push(b"x")
    assert send.queued < before


def test_a_reset_forgets_all_of_it() -> None:
    send = _half()
    send.push(b"abcdef")
    send.take(4)
    send.drop()
    assert (send.queued, send.retained_bytes, _is_ready(send)) == (0, 0, False)
    assert send.ack(4) == 0


@given(
    st.lists(st.binary(min_size=1, max_size=5000), max_size=8),
    st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 100), st.booleans()), max_size=30),
)
def test_the_peer_has_every_byte_in_order(pushed: list[bytes], acts: list[tuple[int, int, bool]]) -> None:
    """Bytes may be taken, acknowledged in part, or taken back: each offset always has the same content."""
    send, content = _half(credit=1 << 20), b"".join(pushed)
    for piece in pushed:
        send.push(piece)
    for most, percent, is_lost in acts:
        if _is_ready(send):
            offset = send.sent
            taken = _joined(send.take(most))
            assert len(taken) == min(most, len(content) - offset)
            assert taken == content[offset : offset + len(taken)]
        send.ack(send.acked + (send.sent - send.acked) * percent // 100)
        if is_lost:
            send.take_back()
        assert send.sent + send.queued == len(content)
        assert send.retained_bytes == send.max_sent - send.acked
