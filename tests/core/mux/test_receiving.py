"""What frames of the peer do to a stream, and which are faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fakes.muxes import LIMITS, REQUEST, move, opened
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Data, End, Opened, RefusedFrame


def test_credit_overrun_resets_the_stream() -> None:
    _, agent, _, far = opened()
    agent.receive(Data(far.number, 0, b"x" * (LIMITS.initial_credit + 1)))
    assert far.reset_reason is Reason.CREDIT_OVERRUN


def test_a_peer_that_sends_on_beyond_its_credit_after_a_stop_is_at_fault() -> None:
    _, agent, _, far = opened()
    far.stop_reading()
    agent.receive(Data(far.number, 0, b"x" * LIMITS.initial_credit))
    with pytest.raises(ProtocolError) as caught:
        agent.receive(Data(far.number, LIMITS.initial_credit, b"x"))
    assert caught.value.reason is Reason.CREDIT_OVERRUN
    assert not caught.value.stream_only


@pytest.mark.parametrize(
    "leave",
    [lambda _, far: far.stop_reading(), lambda agent, far: agent.receive(End(1, far.recv.received))],
)
def test_a_grown_window_goes_back_to_the_pool_when_nothing_more_will_be_held(
    leave: Callable[[Mux, StreamState], None],
) -> None:
    _, agent, _, far = opened()
    _grow_window(agent, far)
    assert agent.pool.granted > 0
    leave(agent, far)
    assert agent.pool.granted == 0
    assert agent.streams, "the other half is open"


def test_data_after_the_end_resets_the_stream() -> None:
    _, agent, _, far = opened()
    agent.receive(End(far.number, 0))
    agent.receive(Data(far.number, 0, b"more"))
    assert far.reset_reason is Reason.DATA_AFTER_END


@pytest.mark.parametrize("second", [End(1, 3), End(1, 5)])
def test_two_ends_that_differ_reset_the_stream(second: End) -> None:
    _, agent, _, far = opened()
    agent.receive(Data(far.number, 0, b"abcd"))
    agent.receive(End(far.number, 4))
    agent.receive(End(far.number, 4))
    assert far.reset_reason is None
    agent.receive(second)
    assert far.reset_reason is Reason.DATA_AFTER_END


def test_an_end_after_data_that_never_came_is_a_fault_of_the_session() -> None:
    _, agent, _, far = opened()
    with pytest.raises(ProtocolError) as caught:
        agent.receive(End(far.number, 4))
    assert caught.value.reason is Reason.DATA_GAP


def test_the_server_answers_no_open() -> None:
    _, agent, _, far = opened()
    for frame in (Opened(far.number, 0), RefusedFrame(far.number, Reason.DIAL_REFUSED, "")):
        with pytest.raises(ProtocolError) as caught:
            agent.receive(frame)
        assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_an_open_stream_cannot_be_refused() -> None:
    server, _, near, _ = opened()
    with pytest.raises(ProtocolError) as caught:
        server.receive(RefusedFrame(near.number, Reason.DIAL_REFUSED, ""))
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_an_agent_cannot_refuse_with_a_reason_of_the_server() -> None:
    server = Mux(LIMITS, CreditPool(0), opener=True)
    stream = server.open(REQUEST)
    server.take(10_000, 10_000)
    server.receive(RefusedFrame(stream.number, Reason.TOO_MANY_OF_USER, "made up"))
    assert stream.refusal is not None and stream.refusal.reason is Reason.DIAL_FAILED
    assert stream.refusal.detail == (
        "the agent refused the stream with the reason too_many_of_user, which an agent may not send"
    )


def test_a_stop_that_crosses_the_end_changes_nothing() -> None:
    server, agent, near, far = opened()
    near.push(b"all of it")
    near.end()
    frames, receipt = server.take(10_000, 10_000)  # the end is on its way
    far.stop_reading()
    move(agent, server)
    for frame in frames:
        agent.receive(frame)
    server.acked(receipt)
    assert near.reset_reason is None and not near.send_reset
    far.end()
    move(agent, server)
    assert not server.streams and not agent.streams


def test_a_gap_is_a_fault_of_the_session() -> None:
    _, agent, _, far = opened()
    with pytest.raises(ProtocolError) as caught:
        agent.receive(Data(far.number, 5, b"x"))
    assert caught.value.reason is Reason.DATA_GAP


def test_data_said_twice_is_read_once() -> None:
    _, agent, _, far = opened()
    agent.receive(Data(far.number, 0, b"abcd"))
    agent.receive(Data(far.number, 2, b"cdef"))
    assert b"".join(bytes(far.read(10)) for _ in range(2)) == b"abcdef"


def test_tiny_data_that_nobody_reads_is_joined() -> None:
    _, agent, _, far = opened()
    for offset in range(LIMITS.initial_credit):
        agent.receive(Data(far.number, offset, b"x"))
    assert len(far.recv.inbox) <= 2


def _grow_window(agent: Mux, far: StreamState) -> None:
    for _ in range(40):
        agent.receive(Data(far.number, far.recv.received, b"x" * 16))
        while far.recv.buffered:
            far.read(1000)


def test_credit_grows_for_a_reader_that_keeps_up_and_not_for_one_that_does_not() -> None:
    _, agent, _, far = opened()
    _grow_window(agent, far)
    assert far.recv.window == LIMITS.max_credit
