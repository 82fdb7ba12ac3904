"""The receive buffer of a stream: what it accepts, what it grants, and what it refuses."""

from __future__ import annotations

import pytest

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.receive_buffer import ReceiveBuffer
from tunnel_core.reasons import Reason
from tunnel_core.wire.errors import ProtocolError

LIMITS = Limits(initial_credit=64, max_credit=100, credit_pool=10_000)


def _half(pool: CreditPool | None = None) -> ReceiveBuffer:
    return ReceiveBuffer(LIMITS, pool or CreditPool(LIMITS.credit_pool))


def test_the_pool_lets_a_window_grow_only_by_a_share_of_what_is_free() -> None:
    pool = CreditPool(1000)
    assert pool.try_grow(125) and not pool.try_grow(125)
    assert pool.try_grow(100) and not pool.under_pressure
    pool.release(225)
    assert pool.granted == 0 and pool.try_grow(125)


def test_a_window_grows_to_the_limit_and_no_further() -> None:
    recv = _half()
    for offset in range(0, 1000, 50):
        recv.add(offset, b"x" * 50)
        recv.take(50)
        recv.maybe_grant()
    assert recv.window == 100 and recv.outstanding <= 100


def test_bytes_received_before_are_trimmed() -> None:
    recv = _half()
    assert recv.add(0, b"abc")
    assert not recv.add(0, b"abc")
    assert recv.add(1, b"bcde")
    assert recv.received == recv.buffered == 5
    assert bytes(recv.take(100)) + bytes(recv.take(100)) == b"abcde"


def test_a_reader_takes_no_more_than_it_asked_for() -> None:
    recv = _half()
    recv.add(0, b"abcde")
    assert bytes(recv.take(2)) == b"ab"
    assert recv.buffered == 3
    assert bytes(recv.take(2)) == b"cd"


def test_credit_is_granted_for_what_was_read_only() -> None:
    recv = _half()
    recv.add(0, b"x" * 60)
    assert not recv.maybe_grant()
    assert recv.granted == 64
    recv.take(60)
    assert recv.maybe_grant()
    assert recv.granted >= 60 + 64


def test_an_ended_half_grants_nothing_more() -> None:
    recv = _half()
    recv.add(0, b"x" * 60)
    recv.end(60)
    assert not recv.at_end
    recv.take(60)
    assert recv.at_end
    assert not recv.maybe_grant()


@pytest.mark.parametrize(
    ("offset", "size", "reason", "stream_only"),
    [(1, 1, Reason.DATA_GAP, False), (0, 65, Reason.CREDIT_OVERRUN, True)],
)
def test_data_out_of_place_is_a_fault(offset: int, size: int, reason: Reason, stream_only: bool) -> None:
    recv = _half()
    with pytest.raises(ProtocolError) as caught:
        recv.add(offset, b"x" * size)
    assert (caught.value.reason, caught.value.stream_only) == (reason, stream_only)
    assert recv.received == recv.buffered == 0


def test_data_behind_the_end_is_a_fault() -> None:
    recv = _half()
    recv.add(0, b"abc")
    recv.end(3)
    with pytest.raises(ProtocolError) as caught:
        recv.add(3, b"d")
    assert caught.value.reason is Reason.DATA_AFTER_END


def test_a_dropped_buffer_returns_its_grown_window() -> None:
    pool = CreditPool(10_000)
    recv = _half(pool)
    recv.add(0, b"x" * 60)
    recv.take(60)
    recv.maybe_grant()
    assert pool.granted == 36
    recv.add(60, b"y" * 10)
    recv.drop()
    assert pool.granted == 0 and not recv.buffered


def test_a_reader_that_is_gone_is_sent_no_more_than_was_granted() -> None:
    recv = _half()
    recv.skip(64)
    assert recv.received == 64 and not recv.buffered
    with pytest.raises(ProtocolError) as caught:
        recv.skip(65)
    assert caught.value.reason is Reason.CREDIT_OVERRUN and not caught.value.stream_only
