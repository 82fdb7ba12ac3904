"""A running session: its streams, deadlines that no packet drives, and errors inside the program."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.fakes.eager_carrier import EagerCarrier
from tests.support.fakes.eager_link import carrier_of, eager_links
from tests.support.fakes.grpc_link import grpc_links
from tests.support.fakes.memory_link import TARGET, LinkPair, memory_links
from tests.support.fakes.replaced import with_methods
from tunnel_core.limits import KIB, Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import ServerHandshake
from tunnel_core.session.profiles import profile_of
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream
from tunnel_core.wire.frames import Bye, Open, Packet, Ping


@pytest.fixture(params=[memory_links, grpc_links], ids=["memory", "grpc"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[LinkPair]:
    async with request.param() as links:
        yield links


class TestOpening:
    async def test_early_data_rides_in_the_open_even_if_the_carrier_takes_it_at_once(self) -> None:
        async with eager_links() as (pair, _):
            pair.server.open(TARGET, user="operator", entrance="web", early_data=b"GET / ")
            (packet,) = carrier_of(pair, 0).peek()
            assert isinstance(packet, Packet)
            (frame,) = packet.frames
            assert isinstance(frame, Open) and bytes(frame.early_data) == b"GET / "


class TestMoving:
    async def test_a_carrier_is_asked_to_take_nothing_while_the_session_moves_to_it(self) -> None:
        async with eager_links() as (pair, deliver):
            near = pair.server.open(TARGET, user="operator", entrance="tcp")
            deliver()
            pair.opened.receive_nowait().accept("127.0.0.1:22")
            deliver()
            near.send_nowait(b"words")
            carrier = EagerCarrier()
            attempt = Attachment(carrier, ServerHandshake(lambda _: pair.server.welcome))
            carrier.start(attempt)
            protocol, taken = pair.server._protocol, -1

            def watched(have: int, now: float) -> None:
                nonlocal taken
                protocol.move(have, now)
                taken = len(carrier.packets)

            pair.server._protocol = with_methods(protocol, move=watched)
            pair.server.move_to(attempt, pair.agent.received)
            assert taken == 0
            assert carrier.packets
            near.reset(Reason.USER_LEFT)


class TestTime:
    async def test_an_idle_link_lives_by_its_pings(self, autojump_clock: MockClock) -> None:
        async with memory_links(Limits(ping_interval_seconds=1, missed_pings=2)) as pair:
            await trio.sleep(60)
            assert pair.server.attached
            assert pair.agent.attached

    async def test_an_ack_that_a_busy_carrier_does_not_take_costs_no_time(self) -> None:
        async with eager_links() as (pair, deliver):
            near = pair.server.open(TARGET, user="operator", entrance="tcp")
            carrier_of(pair, 1).busy = True
            deliver()
            ticks, tick = 0, pair.agent._tick

            def count(now: float) -> None:
                nonlocal ticks
                ticks += 1
                tick(now)

            pair.agent._tick = count  # type: ignore[method-assign]
            await trio.sleep(5 * profile_of(metered=False).ack_delay_seconds)
            assert ticks <= 3
            carrier_of(pair, 1).busy = False
            carrier_of(pair, 1).wake()
            assert len(carrier_of(pair, 1).packets) == 1
            deliver()
            near.reset(Reason.USER_LEFT)

    async def test_freed_send_memory_lets_waiting_data_go(self) -> None:
        limits = Limits(max_send_memory=10 * KIB, ping_interval_seconds=3600)
        async with memory_links(limits) as pair:
            near, far = await pair.streams()
            received = 0
            with trio.fail_after(5):
                await near.send_all(bytes(60 * KIB))
                while received < 60 * KIB:
                    received += len(await far.receive_some())
            near.reset(Reason.USER_LEFT)
            far.reset(Reason.USER_LEFT)


class TestFaults:
    async def test_an_internal_error_while_receiving_ends_only_that_link(self, pair: LinkPair) -> None:
        def fail(_: TunnelStream) -> None:
            raise RuntimeError("a bug of the owner")

        pair.agent._streams._on_open = fail
        stream = pair.server.open(TARGET, user="operator", entrance="tcp")
        with pytest.raises(Refused) as caught:
            await stream.wait_opened()
        assert caught.value.reason is Reason.INTERNAL_ERROR
        assert (await pair.agent.wait_ended())[0] is Reason.INTERNAL_ERROR
        assert (await pair.server.wait_ended())[0] is Reason.INTERNAL_ERROR
        stream.reset(Reason.USER_LEFT)

    async def test_an_internal_error_while_sending_ends_only_that_link(self, pair: LinkPair) -> None:
        near, far = await pair.streams()
        assert pair.server._protocol is not None
        pair.server._protocol._unnumbered.append(Ping(-1))  # no varint has this form
        pair.carriers[0].wake()
        with trio.fail_after(5):
            await pair.server.wait_given_up()
        assert pair.server.ended is not None and pair.server.ended[0] is Reason.INTERNAL_ERROR
        assert (await pair.agent.wait_ended())[0] is Reason.CARRIER_LOST
        with pytest.raises(StreamReset):
            await near.receive_some()
        near.reset(Reason.USER_LEFT)
        far.reset(Reason.USER_LEFT)

    async def test_no_frame_of_a_stream_is_sent_after_the_bye(self) -> None:
        async with eager_links() as (pair, deliver):
            pair.server.open(TARGET, user="operator", entrance="tcp")
            deliver()
            far = pair.opened.receive_nowait()
            pair.agent.end(Reason.AGENT_STOPPING)
            far.accept("127.0.0.1:22")  # the dial succeeded a moment too late
            far.reset(Reason.USER_LEFT)
            (packet,) = carrier_of(pair, 1).peek()
            assert isinstance(packet, Packet)
            assert [type(frame) for frame in packet.frames] == [Bye]

    async def test_an_open_that_crosses_the_bye_makes_no_stream(self, pair: LinkPair) -> None:
        pair.agent.end(Reason.PING_TIMEOUT)
        stream = pair.server.open(TARGET, user="operator", entrance="tcp")
        with pytest.raises(Refused, match="node edge1") as caught:
            await stream.wait_opened()
        assert caught.value.reason is Reason.PING_TIMEOUT
        await pair.agent.wait_given_up()
        assert not pair.agent.streams
        with pytest.raises(trio.WouldBlock):
            pair.opened.receive_nowait()
        stream.reset(Reason.USER_LEFT)


class TestStreams:
    async def test_a_user_who_leaves_before_the_open_was_sent_leaves_no_trace(self) -> None:
        async with eager_links() as (pair, deliver):
            carrier = carrier_of(pair, 0)
            carrier.busy = True
            stream = pair.server.open(TARGET, user="operator", entrance="tcp", early_data=b"x")
            assert stream.id.endswith("-0")
            stream.reset(Reason.USER_LEFT)
            carrier.busy = False
            carrier.wake()
            assert not carrier.packets
            assert not pair.server.streams
            near = pair.server.open(TARGET, user="operator", entrance="tcp")
            deliver()
            assert near.id.endswith("-1") and pair.opened.receive_nowait().id == near.id
            near.reset(Reason.USER_LEFT)

    async def test_data_of_a_user_who_closed_before_the_open_was_sent_is_delivered(self) -> None:
        async with eager_links() as (pair, deliver):
            carrier_of(pair, 0).busy = True
            stream = pair.server.open(TARGET, user="operator", entrance="tcp", early_data=b"x")
            await stream.aclose()
            carrier_of(pair, 0).busy = False
            carrier_of(pair, 0).wake()
            deliver()
            far = pair.opened.receive_nowait()
            assert await far.receive_some() == b"x"
            assert await far.receive_some() == b""
            await far.aclose()

    async def test_the_end_comes_when_there_is_no_credit_left(self) -> None:
        async with memory_links(Limits(initial_credit=1000, max_credit=1000)) as pair:
            near, far = await pair.streams()
            await near.put(bytes(1000))
            await near.send_eof()  # not a byte of credit is left
            await trio.testing.wait_all_tasks_blocked(0.01)
            received = 0
            while piece := await far.receive_some():
                received += len(piece)
            assert received == 1000
            near.reset(Reason.USER_LEFT)
            far.reset(Reason.USER_LEFT)
