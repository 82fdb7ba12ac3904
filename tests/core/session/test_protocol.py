"""The session protocol in virtual time: handshake, numbers, acknowledgement, pings, and faults of a peer."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes.memory_link import hello, welcome
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.session.handshake import VERSION, AgentHandshake, AttachRejected, ServerHandshake
from tunnel_core.session.profiles import profile_of
from tunnel_core.session.protocol import SessionProtocol
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Bye, Frame, Open, Packet, Ping, Pong, Rejected, Reset, Stop, Unknown, Use

DEFAULT = profile_of(metered=False)
LIMITS = Limits(max_opens_per_second=10)
REQUEST = Open(0, "localhost:22", "operator", "tcp", 0)


class Ends:
    """A server's and an agent's session, with a wire that delivers on request, in virtual time."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 100.0
        self.opened: list[StreamState] = []
        self.server_mux = Mux(limits, CreditPool(limits.credit_pool), opener=True)
        self.agent_mux = Mux(limits, CreditPool(limits.credit_pool), opener=False, on_open=self.opened.append)
        offer = welcome(limits)
        self.server = SessionProtocol(self.server_mux, limits, offer, DEFAULT, pings=False, now=self.now)
        self.agent = SessionProtocol(self.agent_mux, limits, offer, DEFAULT, pings=True, now=self.now)

    def move(self) -> int:
        """Deliver until neither side has a packet; returns the number of packets."""
        count = 0
        for source, sink in ((self.server, self.agent), (self.agent, self.server)) * 8:
            while (packet := source.next_packet(self.now)) is not None:
                sink.receive(packet, 100, self.now)
                count += 1
        return count

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for session in (self.server, self.agent):
            session.tick(self.now)


def settled(limits: Limits = LIMITS) -> Ends:
    """Return ends whose first ping is answered."""
    ends = Ends(limits)
    ends.tick(0)
    ends.move()
    return ends


# The attach.


def test_three_steps() -> None:
    server, agent = ServerHandshake(lambda _: welcome(LIMITS)), AgentHandshake(hello(LIMITS))
    answer = server.receive(agent.hello)
    assert answer is not None and server.use is None
    agent.receive(answer)
    assert agent.welcome == server.welcome == answer
    assert server.receive(Use(1, 7)) is None and server.use == Use(1, 7)


def test_two_steps_where_the_hello_has_use_and_the_server_supports_it() -> None:
    sent_hello = hello(LIMITS)._replace(attempt=3, have=7, use=True)
    server = ServerHandshake(lambda _: welcome(LIMITS)._replace(used=True))
    assert server.receive(sent_hello) == server.welcome and server.use == Use(3, 7)
    with pytest.raises(ProtocolError):
        server.receive(Use(3, 7))
    deaf = ServerHandshake(lambda _: welcome(LIMITS))
    deaf.receive(sent_hello)
    assert deaf.use is None


def test_a_rejection_carries_its_reason_and_advice() -> None:
    server = ServerHandshake(lambda _: Rejected(Reason.TOO_MANY_SESSIONS, "full", 5000))
    answer = server.receive(hello(LIMITS))
    assert answer is not None
    with pytest.raises(AttachRejected) as caught:
        AgentHandshake(hello(LIMITS)).receive(answer)
    assert caught.value.reason is Reason.TOO_MANY_SESSIONS
    assert caught.value.retry_after_seconds == 5


@pytest.mark.parametrize(
    "frames",
    [
        [Use(1)],
        [hello(LIMITS), hello(LIMITS)],
        [hello(LIMITS), Use(2)],
        [Ping(1)],
        [hello(LIMITS), Use(1), Use(1)],
    ],
)
def test_steps_out_of_order_are_faults(frames: list[Frame]) -> None:
    steps = ServerHandshake(lambda _: welcome(LIMITS))
    with pytest.raises(ProtocolError) as caught:
        for frame in frames:
            steps.receive(frame)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        AgentHandshake(hello(LIMITS)).receive(welcome(LIMITS)._replace(version=VERSION + 1))
    assert caught.value.reason is Reason.VERSION_MISMATCH


# Numbers and acknowledgement.


def test_frames_that_must_arrive_are_numbered_and_acknowledged() -> None:
    ends = settled()
    stream = ends.server_mux.open(REQUEST)
    stream.push(b"x" * 1000)
    packet = ends.server.next_packet(ends.now)
    assert packet is not None and packet.number == 1
    assert ends.server_mux.unacked_bytes == 1000
    ends.agent.receive(packet, 1000, ends.now)
    ends.tick(DEFAULT.ack_delay_seconds)
    ack = ends.agent.next_packet(ends.now)
    assert ack == Packet(0, 1, (), arrived=100_000_000)
    ends.server.receive(ack, 10, ends.now)
    assert ends.server_mux.unacked_bytes == 0


def test_pings_and_acks_are_not_numbered() -> None:
    ends = Ends()
    ends.tick(0)
    packet = ends.agent.next_packet(ends.now)
    assert packet is not None and packet.number == 0
    assert [type(frame) for frame in packet.frames] == [Ping]


def test_an_ack_waits_for_other_frames_and_then_leaves_alone() -> None:
    ends = settled()
    ends.server_mux.open(REQUEST)
    packet = ends.server.next_packet(ends.now)
    assert packet is not None
    ends.agent.receive(packet, 50, ends.now)
    assert ends.agent.next_packet(ends.now) is None
    assert ends.agent.deadline() == pytest.approx(ends.now + DEFAULT.ack_delay_seconds)
    ends.tick(DEFAULT.ack_delay_seconds)
    assert ends.agent.next_packet(ends.now) == Packet(0, 1, (), arrived=100_000_000)
    assert ends.agent.next_packet(ends.now) is None


def test_many_bytes_are_acknowledged_at_once() -> None:
    ends = settled()
    ends.server_mux.open(REQUEST)
    packet = ends.server.next_packet(ends.now)
    assert packet is not None
    ends.agent.receive(packet, LIMITS.ack_every_bytes, ends.now)
    assert ends.agent.next_packet(ends.now) == Packet(0, 1, (), arrived=100_000_000)


def test_send_memory_full_lets_control_through_and_data_wait() -> None:
    ends = settled(Limits(max_send_memory=1000))
    stream = ends.server_mux.open(REQUEST)
    stream.push(b"x" * 5000)
    first = ends.server.next_packet(ends.now)
    assert first is not None
    ends.server.next_packet(ends.now)
    assert ends.server_mux.unacked_bytes == 1000
    ends.server_mux.open(REQUEST)
    packet = ends.server.next_packet(ends.now)
    assert packet is not None
    assert [type(frame) for frame in packet.frames] == [Open]


def test_an_ack_of_an_unsent_packet_is_a_fault() -> None:
    with pytest.raises(ProtocolError) as caught:
        Ends().server.receive(Packet(0, 1, ()), 10, 100.0)
    assert caught.value.reason is Reason.ACK_OF_UNSENT


def test_a_number_left_out_is_a_fault() -> None:
    with pytest.raises(ProtocolError) as caught:
        Ends().agent.receive(Packet(2, 0, ()), 10, 100.0)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_a_packet_that_comes_twice_counts_once() -> None:
    ends = settled()
    ends.server_mux.open(REQUEST)
    packet = ends.server.next_packet(ends.now)
    assert packet is not None
    ends.agent.receive(packet, 10, ends.now)
    ends.agent.receive(packet, 10, ends.now)
    assert len(ends.opened) == 1


@pytest.mark.parametrize("frame", [Unknown(99), hello(LIMITS), welcome(LIMITS), Use(1)])
def test_unknown_and_misplaced_frames_are_faults(frame: Frame) -> None:
    with pytest.raises(ProtocolError) as caught:
        Ends().agent.receive(Packet(1, 0, (frame,)), 10, 100.0)
    assert caught.value.reason is Reason.UNKNOWN_FRAME


@pytest.mark.parametrize("frame", [REQUEST._replace(stream=1), Bye(Reason.DONE), Reset(1, Reason.DONE)])
def test_frames_that_must_arrive_need_a_number(frame: Frame) -> None:
    with pytest.raises(ProtocolError) as caught:
        Ends().agent.receive(Packet(0, 0, (frame,)), 10, 100.0)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("cancel", [Reset, Stop])
def test_opens_reset_unanswered_are_budgeted_in_time(cancel: type[Reset] | type[Stop]) -> None:
    ends = Ends()
    number = packet_number = 0

    def open_and_reset(count: int) -> None:
        nonlocal number, packet_number
        for _ in range(count):
            number = number + 2 if number else 1
            packet_number += 1
            frames = (REQUEST._replace(stream=number), cancel(number, Reason.USER_LEFT))
            ends.agent.receive(Packet(packet_number, 0, frames), 10, ends.now)
            ends.opened.pop().reset(Reason.USER_LEFT, "")
            ends.agent_mux.streams.clear()

    for _ in range(5):
        ends.now += 1.0
        open_and_reset(9)
    with pytest.raises(ProtocolError) as caught:
        open_and_reset(9)
    assert caught.value.reason is Reason.OPEN_FLOOD


# Liveness.


def test_the_round_trip_in_a_ping_has_a_bound() -> None:
    ends = settled()
    for _ in range(20):
        ends.now += 1
        ends.server.receive(Packet(0, 0, [Ping(9, 2**64 - 1)]), 20, ends.now)
    assert ends.server.liveness.response_timeout_seconds <= 4 * 60
    ends.server_mux.open(REQUEST)
    while ends.server.next_packet(ends.now):
        pass
    assert ends.server.late_at() <= ends.now + 4 * 60


@pytest.mark.parametrize("seed", range(3))
def test_no_arrival_stamp_of_a_peer_breaks_the_controller(seed: int) -> None:
    chosen, ends = random.Random(seed), Ends(Limits(ack_timeout_seconds=math.inf))  # noqa: S311
    server, stream = ends.server, ends.server_mux.open(REQUEST._replace(credit=2**63))
    stream.send.limit = 2**63
    for number in range(300):
        stream.push(bytes(chosen.randrange(1, 50_000)))
        while server.next_packet(ends.now) is not None:
            pass
        ends.now += chosen.choice([1e-5, 1e-3, 0.1])
        arrived = chosen.choice([0, 1, 2**32 - 1, chosen.randrange(2**32)])
        server.receive(
            Packet(0, number and chosen.randrange(server.acked, server._number + 1), [], arrived),
            9,
            ends.now,
        )
        assert server.deadline() >= 0


def test_both_ends_learn_the_round_trip() -> None:
    ends = Ends()
    ends.tick(0)
    ping = ends.agent.next_packet(ends.now)
    assert ping is not None
    ends.server.receive(ping, 10, ends.now)
    ends.now += 0.05
    pong = ends.server.next_packet(ends.now)
    assert pong is not None
    ends.agent.receive(pong, 10, ends.now)
    assert ends.agent.liveness.round_trip_seconds == pytest.approx(0.05)
    ends.tick(LIMITS.ping_interval_seconds)
    ends.move()
    assert ends.server.liveness.round_trip_seconds == pytest.approx(0.05, abs=1e-5)


def test_an_idle_session_lives_by_its_pings() -> None:
    ends = Ends()
    for _ in range(1000):
        ends.tick(5)
        ends.move()


def _time_of_death(session: SessionProtocol, start: float) -> float:
    now = start
    while True:
        now = session.deadline()
        assert now < start + 1000
        try:
            session.tick(now)
        except ProtocolError as fault:
            assert fault.reason is Reason.PING_TIMEOUT
            return now - start
        while session.next_packet(now):
            pass


def test_silence_of_an_idle_session_is_found_by_both_ends_soon_after_the_first_ping() -> None:
    ends = settled()
    interval = LIMITS.ping_interval_seconds
    assert interval + 5 <= _time_of_death(ends.agent, ends.now) <= interval + 8
    assert interval + 5 <= _time_of_death(ends.server, ends.now) <= interval + 6


def busy() -> Ends:
    """Return a session whose streams moved data just now, and which has pinged since."""
    ends = settled()
    ends.server_mux.open(REQUEST).push(b"x")
    ends.move()
    ends.tick(1)
    ends.move()
    return ends


def test_silence_of_a_busy_session_is_found_by_both_ends_in_seconds() -> None:
    ends = busy()
    assert 5 <= _time_of_death(ends.agent, ends.now) <= 8
    ends = busy()
    assert 5 <= _time_of_death(ends.server, ends.now) <= 7


def test_the_first_byte_after_a_rest_makes_the_next_ping_due() -> None:
    ends = settled()
    ends.now += 10
    ends.server_mux.open(REQUEST).push(b"x")
    ends.server.next_packet(ends.now)
    assert ends.server.late_at() == ends.now + ends.server.liveness.response_timeout_seconds, (
        "nothing was late until now"
    )
    ends.server.receive(Packet(0, 1, ()), 10, ends.now)
    assert ends.server.late_at() - ends.now == pytest.approx(
        1 + ends.server.liveness.response_timeout_seconds
    )
    assert 5 <= _time_of_death(ends.server, ends.now) <= 7


def test_a_busy_session_is_pinged_every_second_though_no_pong_comes() -> None:
    ends = busy()
    sent = []
    for _ in range(5):
        ends.now += 1
        ends.agent.tick(ends.now)
        packet = ends.agent.next_packet(ends.now)
        assert packet is not None
        (ping,) = packet.frames
        assert isinstance(ping, Ping)
        sent.append((ends.now, ping.token))
    # Any of them will do, and the older ones are done with.
    at, token = sent[3]
    ends.now += 0.5
    ends.agent.receive(Packet(0, 0, (Pong(token),)), 10, ends.now)
    assert ends.agent.liveness.round_trip_seconds == pytest.approx(ends.now - at)
    ends.agent.receive(Packet(0, 0, (Pong(sent[1][1]),)), 10, ends.now)
    assert ends.agent.liveness.round_trip_seconds == pytest.approx(ends.now - at), (
        "an older one says nothing any more"
    )
    assert ends.agent.late_at() == pytest.approx(sent[4][0] + ends.agent.liveness.response_timeout_seconds)


def test_of_the_pongs_that_come_together_after_an_outage_the_newest_counts() -> None:
    ends = busy()
    before = ends.agent.liveness.response_timeout_seconds
    for _ in range(5):
        ends.now += 1
        ends.agent.tick(ends.now)
        ends.agent.next_packet(ends.now)
    for token, _ in list(ends.agent.liveness._waiting):
        ends.agent.receive(Packet(0, 0, (Pong(token),)), 10, ends.now + 0.1)
    assert ends.agent.liveness.round_trip_seconds == pytest.approx(0.1)
    assert ends.agent.liveness.response_timeout_seconds == before == LIMITS.late_seconds


def test_an_idle_session_is_pinged_every_second_from_the_first_late_pong_on() -> None:
    ends = settled()
    start, times = ends.now, []
    while len(times) < 5:
        ends.now = ends.agent.deadline()
        ends.agent.tick(ends.now)
        if ends.agent.next_packet(ends.now):
            times.append(ends.now - start)
    first = LIMITS.ping_interval_seconds
    assert times == pytest.approx([first, first + 1, first + 2, first + 3, first + 4])


def test_no_more_pings_wait_for_an_answer_than_can_be_counted() -> None:
    ends = busy()
    for _ in range(200):
        ends.now += 1
        ends.agent.receive(Packet(0, 0, ()), 10, ends.now)  # not silent, so not dead
        ends.agent.tick(ends.now)
        while ends.agent.next_packet(ends.now):
            pass
    assert len(ends.agent.liveness._waiting) <= 32


def test_a_paused_process_checks_twice_before_it_declares_the_peer_dead() -> None:
    for name in ("agent", "server"):
        ends = busy()
        session = getattr(ends, name)
        ends.now += 60
        session.tick(ends.now)
        while session.next_packet(ends.now):
            pass
        frame = Pong(session.liveness._token) if name == "agent" else Ping(99)
        session.receive(Packet(0, 0, (frame,)), 10, ends.now)  # the peer answered all the time
        assert _time_of_death(session, ends.now) >= 5


def test_a_peer_that_sends_but_answers_late_is_not_dead() -> None:
    ends = Ends()
    for number in range(1, 50):
        ends.now += 5
        ends.agent.receive(Packet(number, 0, ()), 10, ends.now)
        ends.agent.tick(ends.now)
        ends.agent.next_packet(ends.now)


def test_a_peer_that_answers_pings_but_acknowledges_nothing_is_at_fault() -> None:
    ends = Ends()
    stream = ends.server_mux.open(REQUEST)
    stream.push(b"x")
    ends.server.next_packet(ends.now)
    with pytest.raises(ProtocolError) as caught:
        for token in range(100):
            ends.now += 5
            ends.server.receive(Packet(0, 0, (Ping(token),)), 10, ends.now)
            ends.server.tick(ends.now)
            ends.server.next_packet(ends.now)
    assert caught.value.reason is Reason.PEER_STALLED


def test_a_late_pong_gives_no_sample() -> None:
    ends = Ends()
    ends.agent.receive(Packet(0, 0, (Pong(77),)), 10, ends.now)
    assert ends.agent.liveness.round_trip_seconds is None


def test_a_flood_of_pings_is_a_fault() -> None:
    ends = Ends()
    with pytest.raises(ProtocolError):
        for _ in range(10_000):
            ends.server.receive(Packet(0, 0, (Ping(1),)), 10, ends.now)


def test_bye_is_numbered_and_acknowledged() -> None:
    ends = settled()
    ends.server.send_bye(Reason.SERVER_STOPPING, "maintenance")
    packet = ends.server.next_packet(ends.now)
    assert packet is not None and packet.number == 1
    ends.agent.receive(packet, 10, ends.now)
    assert ends.agent.peer_bye == Bye(Reason.SERVER_STOPPING, "maintenance")
    answer = ends.agent.next_packet(ends.now)
    assert answer is not None
    ends.server.receive(answer, 10, ends.now)
    assert ends.server.bye_acked


def test_only_an_ack_of_the_byes_packet_acknowledges_the_bye() -> None:
    ends = settled()
    ends.server_mux.open(REQUEST).push(b"x")
    before = ends.server.next_packet(ends.now)
    assert before is not None
    ends.server.send_bye(Reason.SERVER_STOPPING, "")
    with_bye = ends.server.next_packet(ends.now)
    assert with_bye is not None and Bye(Reason.SERVER_STOPPING, "") in with_bye.frames
    ends.server.receive(Packet(0, before.number, ()), 10, ends.now)
    assert not ends.server.bye_acked
    ends.server.receive(Packet(0, with_bye.number, ()), 10, ends.now)
    assert ends.server.bye_acked


# Against an obvious model: a wire with any delays carries everything once and in order, and ends at rest.


@settings(deadline=None)
@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(1, 3000)),
            st.tuples(st.just("send"), st.booleans()),
            st.tuples(st.just("deliver"), st.booleans()),
            st.tuples(st.just("wait"), st.floats(0, 0.05)),
            st.tuples(st.just("read"), st.integers(1, 4000)),
        ),
        max_size=80,
    )
)
def test_any_delay_delivers_everything_once(script: list[tuple[str, float]]) -> None:
    ends = Ends()
    wires: tuple[deque[Packet], deque[Packet]] = (deque(), deque())
    sessions = ends.server, ends.agent
    stream = ends.server_mux.open(REQUEST)
    pushed, read = bytearray(), bytearray()
    receiver: StreamState | None = None

    def step(what: str, value: float) -> None:
        nonlocal receiver
        if what == "push" and stream.send.room > 0:
            data = bytes(i % 251 for i in range(len(pushed), len(pushed) + int(value)))
            pushed.extend(data)
            stream.push(data)
        elif what == "send":
            packet = sessions[bool(value)].next_packet(ends.now)
            if packet is not None:
                wires[bool(value)].append(packet)
        elif what == "deliver" and wires[bool(value)]:
            arrived = decode_packet(encode_packet(*wires[bool(value)].popleft()))
            assert isinstance(arrived, Packet)
            sessions[not value].receive(arrived, 100, ends.now)
        elif what == "wait":
            ends.tick(value)
        elif what == "read" and receiver and receiver.recv.buffered:
            read.extend(receiver.read(int(value)))
        if ends.opened and receiver is None:
            receiver = ends.opened[0]
            receiver.accept("")

    for what, value in script:
        step(what, value)
    for _ in range(300):
        for what, value in (
            ("wait", 0.03),
            ("send", 0),
            ("send", 1),
            ("deliver", 0),
            ("deliver", 1),
            ("read", 10**6),
        ):
            step(what, value)
    assert read == pushed
    assert ends.server_mux.unacked_bytes == ends.agent_mux.unacked_bytes == 0
    assert math.isinf(ends.server._ack_scheduler.due) and math.isinf(ends.agent._ack_scheduler.due)
