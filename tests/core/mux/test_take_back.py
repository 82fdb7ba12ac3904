"""What the mux retransmits after a lost carrier, and the bound on a process's retained bytes."""

from __future__ import annotations

import pytest

from tests.support.fakes.memory_link import welcome
from tunnel_core.limits import KIB, Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.mux.mux import Mux
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.profiles import profile_of
from tunnel_core.session.protocol import SessionProtocol
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Data, DataParts, Draining, End, Frame, Open, Opened, Packet

REQUEST = Open(0, "localhost:22", "operator", "tcp", 0)
LIMITS = Limits(flight_limit=False)  # memory alone bounds what is sent here


def opener(limits: Limits = LIMITS, send_pool: SendPool | None = None) -> Mux:
    return Mux(limits, CreditPool(0), opener=True, send_pool=send_pool)


def sent_frames(session: SessionProtocol) -> list[Frame]:
    packet = session.next_packet(0.0)
    return list(packet.frames) if packet else []


def server(mux: Mux) -> SessionProtocol:
    return SessionProtocol(mux, mux.limits, welcome(LIMITS), profile_of(metered=False), pings=False, now=0.0)


def test_opens_come_again_first_in_order_and_without_early_data() -> None:
    mux = opener()
    session = server(mux)
    first, second = mux.open(REQUEST, b"early"), mux.open(REQUEST)
    assert [type(frame) for frame in sent_frames(session)] == [Open, Open]
    second.push(b"later")
    third = mux.open(REQUEST)
    session.move(0, 1.0)
    frames = sent_frames(session)
    opens = [frame for frame in frames if isinstance(frame, Open)]
    assert [frame.stream for frame in opens] == [1, 3, 5] and third.number == 5
    assert all(not frame.early_data for frame in opens)
    data = {frame.stream: bytes(frame.payload) for frame in frames if isinstance(frame, Data)}
    assert data == {1: b"early", 3: b"later"}
    assert first.send.acked == 0


def test_a_key_goes_before_the_bulk_that_comes_again() -> None:
    mux = opener()
    session = server(mux)
    bulk, shell = mux.open(REQUEST), mux.open(REQUEST)
    sent_frames(session)
    for stream in (bulk, shell):
        mux.receive(Opened(stream.number, 1024 * KIB))
    bulk.push(bytes(600 * KIB))
    sent_frames(session)
    session.move(1, 1.0)  # the opens have arrived
    shell.push(b"key")
    frames = mux.take(100 * KIB, 100 * KIB)[0]
    data = [frame.stream for frame in frames if isinstance(frame, Data | DataParts)]
    assert data[0] == shell.number and data[1:] == [bulk.number] * 2
    shell.push(b"another")
    data = [f.stream for f in mux.take(8 * KIB, 8 * KIB)[0] if isinstance(f, Data | DataParts)]
    assert data.index(shell.number) <= 1, "the last link's quantum counts for nothing"


def test_a_move_acknowledges_what_the_peer_has() -> None:
    mux = opener()
    session = server(mux)
    stream = mux.open(REQUEST)
    stream.push(b"x" * 100)
    sent_frames(session)
    stream.end()
    sent_frames(session)
    session.move(1, 1.0)
    assert stream.send.acked == 100
    assert sent_frames(session) == [End(1, 100)]
    assert mux.unacked_bytes == mux.retained_bytes == 0


def test_numbers_keep_rising_and_old_ones_acknowledge_nothing() -> None:
    mux = opener()
    session = server(mux)
    stream = mux.open(REQUEST)
    stream.push(b"x" * 100)
    sent_frames(session)
    session.move(0, 1.0)
    session.receive(Packet(0, 1, ()), 10, 1.0)
    assert stream.send.acked == 0
    packet = session.next_packet(1.0)
    assert packet is not None and packet.number == 2
    session.receive(Packet(0, 2, ()), 10, 1.0)
    assert stream.send.acked == 100


def test_the_first_number_on_a_carrier_may_leave_some_out_and_no_other() -> None:
    session = SessionProtocol(
        Mux(LIMITS, CreditPool(0), opener=False),
        LIMITS,
        welcome(LIMITS),
        profile_of(metered=False),
        pings=True,
        now=0.0,
    )
    session.move(0, 1.0)
    session.receive(Packet(7, 0, ()), 10, 1.0)
    assert session.received == 7
    with pytest.raises(ProtocolError):
        session.receive(Packet(9, 0, ()), 10, 1.0)


def test_a_low_have_is_no_fault_and_one_too_high_is() -> None:
    mux = opener()
    session = server(mux)
    mux.open(REQUEST)
    sent_frames(session)
    session.receive(Packet(0, 1, ()), 10, 0.0)
    session.move(0, 1.0)
    assert sent_frames(session) == []
    with pytest.raises(ProtocolError) as caught:
        session.move(5, 2.0)
    assert caught.value.reason is Reason.ACK_OF_UNSENT


def test_the_sessions_own_frames_are_retransmitted() -> None:
    session = server(opener())
    session.send_draining(8)
    assert sent_frames(session) == [Draining(8000)]
    session.move(0, 1.0)
    assert sent_frames(session) == [Draining(8000)]


def test_the_end_and_the_reset_come_again() -> None:
    mux = opener()
    session = server(mux)
    ended, broken = mux.open(REQUEST), mux.open(REQUEST)
    sent_frames(session)
    session.receive(Packet(0, 1, ()), 10, 0.0)
    ended.end()
    broken.reset(Reason.USER_LEFT, "")
    before = sent_frames(session)
    session.move(1, 1.0)
    assert sorted(map(str, sent_frames(session))) == sorted(map(str, before))


def test_without_a_carrier_nothing_is_due_and_no_peer_is_at_fault() -> None:
    mux = opener()
    session = server(mux)
    mux.open(REQUEST)
    sent_frames(session)
    session.pause()
    assert session.deadline() == session.late_at() == float("inf")
    assert not session.tick(10_000.0)


def test_a_full_pool_makes_data_wait_and_refuses_opens_while_control_goes_on() -> None:
    pool = SendPool(64 * KIB)
    second = opener(send_pool=pool)
    waiting = server(second)
    other = second.open(REQUEST)
    sent_frames(waiting)
    pool.used = pool.size  # by other sessions
    with pytest.raises(Refused) as caught:
        second.open(REQUEST)
    assert caught.value.reason is Reason.SEND_MEMORY_FULL
    woken: list[bool] = []
    second.wake = lambda: woken.append(True)
    other.push(b"waits")
    assert sent_frames(waiting) == [] and not second.has_data
    woken.clear()
    pool.release(pool.size)
    assert pool.used == 0 and woken
    [frame] = sent_frames(waiting)
    assert isinstance(frame, Data | DataParts)


def test_bytes_taken_back_have_their_place_in_the_pool() -> None:
    pool = SendPool(100 * KIB)
    mux = opener(send_pool=pool)
    session = server(mux)
    stream = mux.open(REQUEST)
    stream.push(bytes(10 * KIB))
    while sent_frames(session):
        pass
    session.move(0, 1.0)
    assert pool.used == mux.retained_bytes == 10 * KIB and mux.unacked_bytes == 0
    while sent_frames(session):
        pass
    assert mux.unacked_bytes == pool.used == 10 * KIB
    stream.reset(Reason.USER_LEFT, "")
    assert pool.used == mux.unacked_bytes == 0
