"""The port of a carrier: the attachment until the attach has sent its last frame, then the session."""

from __future__ import annotations

import pytest
import trio.testing

from tests.support.fakes.eager_carrier import EagerCarrier
from tests.support.fakes.memory_link import hello, welcome
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import AgentHandshake, ServerHandshake
from tunnel_core.session.session import Session
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Bye, Packet, Service, Use, Welcome

LIMITS = Limits()


def session_of(attempt: Attachment, *, opener: bool) -> Session:
    assert attempt.handshake.hello is not None
    return Session(
        attempt.handshake.hello,
        attempt.welcome,
        opener=opener,
        node="edge1",
        limits=LIMITS,
        pool=CreditPool(LIMITS.credit_pool),
    )


class ServerEnd:
    """The server's end of one attach; ``used``: the session moves with the hello."""

    def __init__(self, *, used: bool = False, busy: bool = False) -> None:
        self.carrier = EagerCarrier()
        self.carrier.busy = busy
        self.session: Session | None = None
        steps = ServerHandshake(lambda _: welcome(LIMITS)._replace(used=used))
        self.attempt = Attachment(self.carrier, steps, self._begin)
        self.carrier.start(self.attempt)

    def _begin(self, attempt: Attachment) -> None:
        self.session = session_of(attempt, opener=True)
        self.session.move_to(attempt, 0)

    def receive(self, data: bytes) -> None:
        assert self.carrier.port is not None
        self.carrier.port.packet_received(data)


def one(frame: object) -> bytes:
    return encode_packet(0, 0, [frame])  # type: ignore[list-item]


async def test_at_the_server_the_session_is_the_port_from_use_on() -> None:
    end = ServerEnd()
    end.receive(one(hello(LIMITS)))
    assert end.carrier.port is end.attempt
    end.receive(one(Use(1)))
    assert end.session is not None and end.session.attached
    assert end.carrier.port is end.session


async def test_a_welcome_that_has_not_left_goes_before_all_of_the_session() -> None:
    end = ServerEnd(used=True, busy=True)
    end.receive(one(hello(LIMITS)))
    assert end.session is not None
    end.session.end(Reason.SERVER_STOPPING)
    assert end.carrier.port is end.attempt, "the carrier has not taken the welcome yet"
    end.carrier.busy = False
    end.carrier.wake()
    first, second = (decode_packet(data) for data in list(end.carrier.packets)[:2])
    assert isinstance(first, Packet) and [type(frame) for frame in first.frames] == [Welcome]
    assert isinstance(second, Packet) and [type(frame) for frame in second.frames] == [Bye]
    assert end.carrier.port is end.session


async def test_packets_before_the_welcome_is_sent_reach_the_session() -> None:
    end = ServerEnd(used=True, busy=True)
    end.receive(one(hello(LIMITS)))
    end.receive(encode_packet(1, 0, [Bye(Reason.AGENT_STOPPING, "")]))
    assert end.session is not None and end.session.ended is not None
    assert end.session.ended[0] is Reason.AGENT_STOPPING


async def test_an_attach_is_bounded_over_all_its_packets() -> None:
    end = ServerEnd()
    services = tuple(Service(f"s{number:062d}", "https", "a" * 250) for number in range(LIMITS.max_services))
    sent_hello = one(hello(LIMITS)._replace(services=services))
    assert LIMITS.max_attach_bytes // 2 < len(sent_hello) < LIMITS.max_attach_bytes
    end.receive(sent_hello)
    assert end.attempt.handshake.welcome is not None, "that much is read"
    end.receive(bytes(LIMITS.max_attach_bytes - len(sent_hello) + 1))
    with pytest.raises(Refused, match="received more bytes than an attach needs"):
        await end.attempt.settle(1)
    assert end.carrier.abandoned


async def test_an_agent_reads_nothing_between_the_welcome_and_its_use() -> None:
    carrier = EagerCarrier()
    attempt = Attachment(carrier, AgentHandshake(hello(LIMITS)))
    carrier.start(attempt)
    attempt.packet_received(one(welcome(LIMITS)))
    attempt.packet_received(b"\xff" * 10_000_000)
    session = session_of(attempt, opener=False)
    attempt.use(session)
    assert session.attached and carrier.port is session
    kinds = [
        type(frame) for packet in carrier.peek() if isinstance(packet, Packet) for frame in packet.frames
    ]
    assert kinds[-1] is Use


async def test_a_carrier_whose_close_is_delayed_delivers_nothing_more_to_the_session() -> None:
    end = ServerEnd()
    end.receive(one(hello(LIMITS)))
    end.receive(one(Use(1)))
    session, old = end.session, end.carrier
    assert session is not None
    end.attempt.close_delayed = True
    session.carrier_lost("the session moves")
    assert not old.abandoned
    assert old.port is end.attempt
    received = session.received
    end.receive(encode_packet(1, 0, [Bye(Reason.AGENT_STOPPING, "")]))
    old.wake()
    assert session.received == received
    assert not end.attempt.is_used
    end.attempt.abandon()
    assert old.abandoned
    await trio.testing.wait_all_tasks_blocked()
