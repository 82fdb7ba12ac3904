"""Begin and end of a session: attach, rejection, bye, drain, loss. An ended session leaves nothing."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.fakes.eager_carrier import EagerCarrier
from tests.support.fakes.eager_link import carrier_of, eager_links
from tests.support.fakes.grpc_link import grpc_links
from tests.support.fakes.grpc_site import Site, open_site
from tests.support.fakes.memory_carrier import MemoryCarrier, memory_carriers
from tests.support.fakes.memory_link import TARGET, LinkPair, attach_links, hello, memory_links, welcome
from tests.support.net.wire import connections, descriptors
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import AgentHandshake, AttachRejected, ServerHandshake
from tunnel_core.session.session import Session
from tunnel_core.session.state import SessionState
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Packet, Ping, Rejected, Welcome


@asynccontextmanager
async def unattached(
    answer: Welcome | Rejected | None = None, decide: Callable[[Attachment], None] = lambda _: None
) -> AsyncIterator[tuple[Attachment, Attachment, trio.Nursery]]:
    """Return a server's and an agent's attachment before the attach."""
    async with trio.open_nursery() as nursery:
        near, far = memory_carriers(nursery)
        steps = ServerHandshake(lambda _: answer or welcome(Limits()))
        yield Attachment(near, steps, decide), Attachment(far, AgentHandshake(hello(Limits()))), nursery
        nursery.cancel_scope.cancel()


async def failure_of(attempt: Attachment, seconds: float = 10) -> Refused:
    with pytest.raises(Refused) as caught:
        await attempt.settle(seconds)
    return caught.value


@pytest.fixture(params=[memory_links, grpc_links], ids=["memory", "grpc"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[LinkPair]:
    async with request.param() as sessions:
        yield sessions


class TestAttaching:
    async def test_each_end_knows_the_other_after_three_steps(self, pair: LinkPair) -> None:
        for session in (pair.server, pair.agent):
            assert session.attached and session.state is SessionState.ATTACHED and session.ended is None
            assert session.session_id == "73737373"
        assert pair.server.software == "qanat-agent/test"
        assert pair.agent.software == "qanat-server/test"
        assert [service.name for service in pair.server.services] == ["web"]

    async def test_a_rejection_reaches_the_agent_with_its_advice(self) -> None:
        no = Rejected(Reason.TOO_MANY_SESSIONS, "the server is full", 5000)
        async with unattached(no) as (server, agent, nursery):
            nursery.start_soon(failure_of, server)
            refused = await failure_of(agent)
            assert isinstance(refused, AttachRejected) and refused.detail == "the server is full"
            assert refused.retry_after_seconds == 5

    async def test_a_use_that_comes_too_late_is_rejected(self) -> None:
        def refuse(_: Attachment) -> None:
            raise Refused(Reason.STALE_ATTEMPT)

        async with unattached(decide=refuse) as (server, agent, nursery):
            reported = trio.Event()
            nursery.start_soon(failure_of, server)
            await agent.settle(10)
            session = Session(
                hello(Limits()),
                agent.welcome._replace(grace_ms=1000),
                opener=False,
                node="edge1",
                limits=Limits(),
                pool=CreditPool(0),
                on_event=lambda *_: reported.set(),
            )
            agent.use(session)
            nursery.start_soon(session.run)
            with trio.fail_after(5):
                await reported.wait()
            assert session.lost is not None and session.lost.reason is Reason.STALE_ATTEMPT

    async def test_each_frame_of_the_attach_leaves_alone(self, autojump_clock: MockClock) -> None:
        def refuse(_: Attachment) -> None:
            raise Refused(Reason.STALE_ATTEMPT)

        async with unattached(welcome(Limits())._replace(used=True), refuse) as (server, agent, nursery):
            nursery.start_soon(failure_of, server)
            await agent.settle(10)
            await trio.sleep(1)
            assert isinstance(server.carrier, MemoryCarrier)
            packets = [decode_packet(data) for data in server.carrier.packets]
            kinds = [
                [type(frame) for frame in packet.frames] for packet in packets if isinstance(packet, Packet)
            ]
            assert kinds == [[Welcome], [Rejected]]

    async def test_a_silent_peer_times_out(self, autojump_clock: MockClock) -> None:
        async with unattached() as (_, agent, _nursery):
            start = trio.current_time()
            assert (await failure_of(agent, 7)).reason is Reason.ATTACH_TIMEOUT
            assert trio.current_time() - start == pytest.approx(7, abs=0.1)

    async def test_a_welcome_that_is_never_used_times_out(self, autojump_clock: MockClock) -> None:
        async with unattached() as (server, agent, nursery):
            nursery.start_soon(agent.settle, 10)
            assert (await failure_of(server)).reason is Reason.ATTACH_TIMEOUT
            assert agent.welcome.software == "qanat-server/test"

    async def test_a_carrier_that_broke_after_the_welcome_is_not_used(self) -> None:
        async with unattached() as (server, agent, nursery):
            nursery.start_soon(failure_of, server)
            await agent.settle(10)
            server.abandon()
            await trio.testing.wait_all_tasks_blocked()
            session = Session(
                hello(Limits()),
                agent.welcome,
                opener=False,
                node="edge1",
                limits=Limits(),
                pool=CreditPool(0),
            )
            with pytest.raises(Refused):
                agent.use(session)

    async def test_an_attachment_may_be_given_up_while_it_attaches(self) -> None:
        ends = EagerCarrier(), EagerCarrier()
        with trio.move_on_after(0.01):
            await Attachment(ends[1], AgentHandshake(hello(Limits()))).settle(10)
        assert ends[1].abandoned

    async def test_a_step_out_of_order_ends_the_attachment(self) -> None:
        async with unattached() as (server, _, _nursery):
            server.packet_received(encode_packet(0, 0, (Ping(1),)))
            assert (await failure_of(server)).reason is Reason.PROTOCOL_ERROR

    async def test_twenty_forced_re_attaches_leave_nothing(self) -> None:
        async with open_site() as site:
            await _live_once(site)
            await _settled(lambda: not connections(site.port))
            before, tasks = descriptors(), trio.lowlevel.current_statistics().tasks_living
            for _ in range(20):
                await _live_once(site)
            await _settled(lambda: not connections(site.port) and descriptors() <= before)
            assert trio.lowlevel.current_statistics().tasks_living <= tasks


class TestEnding:
    async def test_a_bye_is_received_with_its_reason_and_acknowledged(self, pair: LinkPair) -> None:
        near, far = await pair.streams()
        pair.server.end(Reason.TAKEN_OVER, "a newer session came from 10.0.0.7")
        pair.server.end(Reason.SERVER_STOPPING)
        start = trio.current_time()
        reported = await pair.agent.wait_ended()
        assert reported == (Reason.TAKEN_OVER, "a newer session came from 10.0.0.7")
        await pair.server.wait_given_up()
        assert trio.current_time() - start < 0.5, "acknowledged, not waited out"
        for stream in (near, far):
            with pytest.raises(StreamReset, match="node edge1 ended: a newer session") as caught:
                await stream.receive_some()
            assert caught.value.reason is Reason.TAKEN_OVER
            stream.reset(Reason.USER_LEFT)
        assert not pair.server.streams and not pair.agent.streams
        assert pair.server.statistics().credit_granted == pair.agent.statistics().credit_granted == 0

    async def test_both_may_send_bye_at_once(self, pair: LinkPair) -> None:
        pair.server.end(Reason.SERVER_STOPPING)
        pair.agent.end(Reason.AGENT_STOPPING)
        with trio.fail_after(5):
            await pair.server.wait_given_up()
            await pair.agent.wait_given_up()
        assert pair.server.ended is not None and pair.server.ended[0] is Reason.SERVER_STOPPING
        assert pair.agent.ended is not None and pair.agent.ended[0] is Reason.AGENT_STOPPING

    async def test_the_wait_for_a_byes_ack_is_short(self) -> None:
        async with eager_links() as (pair, _):
            start = trio.current_time()
            pair.server.end(Reason.SERVER_STOPPING)
            await pair.server.wait_given_up()
            assert trio.current_time() - start == pytest.approx(1, abs=0.3)
            assert carrier_of(pair, 0).abandoned

    async def test_a_lost_carrier_resets_every_stream(self) -> None:
        async with memory_links() as pair:
            pairs = [await pair.streams() for _ in range(5)]
            waiting = pair.server.open(TARGET, user="operator", entrance="tcp")
            carrier = pair.carriers[0]
            assert isinstance(carrier, MemoryCarrier)
            carrier.cut()
            for session in (pair.server, pair.agent):
                assert (await session.wait_ended())[0] is Reason.CARRIER_LOST
                await session.wait_given_up()
            for stream in [stream for both in pairs for stream in both]:
                with pytest.raises(StreamReset) as caught:
                    await stream.receive_some()
                assert caught.value.reason is Reason.CARRIER_LOST
                stream.reset(Reason.USER_LEFT)
            with pytest.raises(Refused) as refused:
                await waiting.wait_opened()
            assert refused.value.reason is Reason.CARRIER_LOST
            waiting.reset(Reason.USER_LEFT)
            assert not pair.server.streams

    async def test_a_call_that_just_ends_is_a_loss(self) -> None:
        async with grpc_links() as pair:
            near, far = await pair.streams()
            pair.carriers[1].abandon()
            assert (await pair.server.wait_ended())[0] is Reason.CARRIER_LOST
            with pytest.raises(StreamReset):
                await near.receive_some()
            near.reset(Reason.USER_LEFT)
            far.reset(Reason.USER_LEFT)

    async def test_malformed_bytes_end_it_with_their_reason(self, pair: LinkPair) -> None:
        pair.server.packet_received(b"\x1a\xff")
        reason, detail = await pair.agent.wait_ended()
        assert reason is Reason.MALFORMED_PACKET and detail and detail != reason.meaning

    async def test_a_peer_is_informed_of_its_fault(self, pair: LinkPair) -> None:
        pair.server.packet_received(encode_packet(0, 10**6, ()))
        assert (await pair.agent.wait_ended())[0] is Reason.ACK_OF_UNSENT
        await pair.server.wait_given_up()

    @pytest.mark.parametrize("listener", ["server", "agent"])
    async def test_silence_is_noticed(self, listener: str, autojump_clock: MockClock) -> None:
        async with memory_links(Limits(ping_interval_seconds=15, missed_pings=2)) as pair:
            await trio.sleep(100)
            silenced = pair.carriers[1 if listener == "server" else 0]
            assert isinstance(silenced, MemoryCarrier)
            silenced.swallow = True
            start = trio.current_time()
            session: Session = getattr(pair, listener)
            assert (await session.wait_ended())[0] is Reason.PING_TIMEOUT
            assert 5 <= trio.current_time() - start <= 15 + 5 + 3

    async def test_a_cancelled_run_leaves_no_task_and_gives_the_carrier_up(self) -> None:
        async with eager_links() as (pair, _):
            assert not carrier_of(pair, 0).abandoned
        assert carrier_of(pair, 0).abandoned
        assert pair.server.ended is not None and pair.server.ended[0] is Reason.SESSION_LOST
        with trio.fail_after(1):
            await pair.server.wait_given_up()


class TestDraining:
    async def test_a_draining_session_refuses_new_streams_and_lets_old_ones_finish(
        self, pair: LinkPair
    ) -> None:
        near, far = await pair.streams()
        pair.server.drain(8)
        pair.server.drain(8)
        with pytest.raises(Refused) as caught:
            pair.server.open(TARGET, user="operator", entrance="tcp")
        assert caught.value.reason is Reason.SERVER_STOPPING
        await near.send_all(b"still")
        assert await far.receive_some() == b"still"
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(2):  # more than one may wait
                    nursery.start_soon(pair.server.wait_no_streams)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert len(nursery.child_tasks) == 2
                for stream in (near, far):
                    await stream.aclose()
        assert pair.server.ended is None

    async def test_an_open_that_crosses_the_agents_drain_is_refused(self, pair: LinkPair) -> None:
        pair.agent.drain(8)
        crossing = pair.server.open(TARGET, user="operator", entrance="tcp")
        for stream in (crossing, None):
            with pytest.raises(Refused) as caught:
                if stream is not None:
                    await stream.wait_opened()
                pair.server.open(TARGET, user="operator", entrance="tcp")
            assert caught.value.reason is Reason.AGENT_STOPPING
        crossing.reset(Reason.USER_LEFT)


async def _live_once(site: Site) -> None:
    """One session over one connection, and a stream both ways."""
    agent_end = await site.dial()
    async with trio.open_nursery() as nursery:
        pair = await attach_links(nursery, await site.accept(), agent_end, Limits())
        near, far = await pair.streams()
        await near.send_all(b"question")
        assert await far.receive_some() == b"question"
        await far.send_all(b"answer")
        assert await near.receive_some() == b"answer"
        figures = pair.server.statistics()
        assert (figures.bytes_out, figures.bytes_in) == (8, 6)
        for stream in (near, far):
            stream.reset(Reason.USER_LEFT)
        nursery.cancel_scope.cancel()


async def _settled(condition: Callable[[], object]) -> None:
    with trio.fail_after(5):
        while not condition():
            gc.collect()
            await trio.sleep(0.01)
