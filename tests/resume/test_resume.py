"""Sessions that outlive their carriers, rule by rule, in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.resume.network import End
from tests.resume.site import Agent, Site, open_site
from tunnel_agent.status.state import AgentState
from tunnel_core.limits import KIB, Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.state import SessionState
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream


def lose_all(site: Site) -> None:
    """Break both ends of every carrier at once, and lose all packets under way."""
    for end in list(site.network.ends):
        end.under_way.clear()
        end.lose()


def read(stream: TunnelStream) -> bytes:
    received = bytearray()
    while data := stream.receive_nowait(1 << 20):
        received += data
    return bytes(received)


async def test_a_stream_continues_over_the_next_carrier(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        near.send_nowait(b"before ")
        await site.flush()
        near.send_nowait(b"lost with the carrier ")
        for end in site.network.ends:
            end.take()
        lose_all(site)
        near.send_nowait(b"and after")
        near.send_eof_nowait()
        session = site.session.session_id
        assert site.session.state is SessionState.GRACE
        await site.pass_time(0.5)
        assert site.session.state is SessionState.ATTACHED and site.session.session_id == session
        assert read(far) == b"before lost with the carrier and after"
        assert far.receive_nowait(1) == b""
        far.send_nowait(b"answer")
        far.send_eof_nowait()
        await site.pass_time(1)
        assert read(near) == b"answer" and near.receive_nowait(1) == b""
        assert site.counters.attaches == {"ok": 1, "resumed": 1}
        for stream in (near, far):
            stream.close_nowait()
        await site.pass_time(1)
        assert not site.session.streams and not list(site.session.mux_streams)
        assert site.acceptor.send_pool.used == 0


async def test_bytes_that_the_peer_has_are_not_sent_again(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, _ = await site.streams()
        near.send_nowait(bytes(50 * KIB))
        await site.flush()
        lose_all(site)  # before any packet was acknowledged
        await site.settle()
        session = site.session._protocol
        await site.pass_time(0.5)
        assert near.bytes_out == 50 * KIB
        assert session.mux.unacked_bytes == 0 and near._mux.send.queued == 0


async def test_the_agent_moves_although_the_server_noticed_nothing(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        old = site.session.attachment
        for end in list(site.network.ends):
            if not end.peer.leaf_pem:
                end.lose()
        for _ in range(8):  # the old carrier's server end still works, and is not informed
            await site.settle()
            for end in site.network.ends:
                if end.port is not old:
                    end.take()
                    end.deliver()
        assert site.session.attachment is not old and site.session.attached
        near.send_nowait(b"on the new one")
        await site.pass_time(0.5)
        assert read(far) == b"on the new one"


def hop(site: Site, end: End) -> None:
    """Deliver the packets that this end has to send."""
    while end.take() or end.deliver():
        pass


async def test_without_a_carrier_the_session_moves_with_the_hello(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        lose_all(site)
        near.send_nowait(b"key")
        await site.settle()
        agent, server = site.network.ends[-1], site.network.ends[-2]
        hop(site, agent)  # half a round trip: the hello
        await site.settle()
        assert site.session.attached and site.counters.attaches == {"ok": 1, "resumed": 1}
        assert site.agent.session is not None and not site.agent.session.attached
        hop(site, server)  # the welcome, and all that was waiting right behind it
        assert site.agent.session.attached and read(far) == b"key"
        far.send_nowait(b"echo")
        await site.settle()
        hop(site, agent)
        assert read(near) == b"echo"


async def test_the_agent_lets_the_server_send_first_but_not_for_long(
    autojump_clock: MockClock,
) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        lose_all(site)
        far.send_nowait(b"bulk")
        start = trio.current_time()
        await site.pass_time(0.2, step=0.01)
        assert read(near) == b"bulk"
        assert trio.current_time() - start < 0.5


async def test_while_the_carrier_may_be_alive_the_hello_does_not_move_the_session(
    autojump_clock: MockClock,
) -> None:
    async with open_site() as site:
        await site.streams()
        attachment = site.session.attachment
        await trio.sleep(2.5)  # late
        hop(site, site.network.ends[-1])
        await site.settle()
        assert site.session.attachment is attachment
        hop(site, site.network.ends[-2])
        await site.settle()
        assert site.agent.session is not None and site.agent.session.attachment is not None
        assert site.agent.session.attachment.carrier is site.network.ends[-1]


async def test_a_server_that_does_not_move_with_the_hello_receives_use_after_its_welcome(
    autojump_clock: MockClock,
) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        offer = site.acceptor._answer_hello
        site.acceptor._answer_hello = lambda *of: offer(*of)._replace(used=False)  # type: ignore[method-assign]
        lose_all(site)
        near.send_nowait(b"goes on")
        await site.pass_time(1)
        assert read(far) == b"goes on" and site.counters.attaches == {"ok": 1, "resumed": 1}


async def test_a_hello_without_a_session_takes_nothing_over(
    autojump_clock: MockClock,
) -> None:
    async with open_site() as site:
        attachment, welcomed = site.session.attachment, []

        async def intrude() -> None:
            stranger = Agent(site, b"x" * 16, b"y" * 16)
            welcomed.append((await stranger.attach(5, lambda: True)).welcome)

        site.nursery.start_soon(intrude)
        await site.pass_time(1)
        assert [welcome.used for welcome in welcomed] == [False]
        assert site.session.attachment is attachment and site.session.attached


async def test_a_carrier_that_lost_its_address_is_left_at_once(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        old = site.session.attachment
        assert site.agent.session is not None and site.agent.failover is not None
        assert site.agent.session.attachment is not None
        site.agent.session.attachment.carrier.lost_local_address = lambda: True  # type: ignore[method-assign]
        start = trio.current_time()
        site.agent.failover.route_changed()
        assert site.agent.session.state is SessionState.GRACE
        near.send_nowait(b"over the other way")
        await site.flush()
        assert read(far) == b"over the other way" and trio.current_time() == start
        assert site.session.attachment is not old


async def test_late_only_starts_attempts_and_the_old_carrier_stays_if_it_is_alive(
    autojump_clock: MockClock,
) -> None:
    async with open_site() as site:
        await site.streams()
        attachment, attempts = site.session.attachment, site.agent.attempts
        await trio.sleep(4.5)  # nothing moves, and nothing is lost
        assert site.agent.attempts > attempts
        assert site.agent.session is not None and site.agent.session.state is SessionState.DEGRADED
        # The old carrier's packets arrive first, then the welcomes.
        for end in site.network.ends:
            if end.port in (site.session, site.agent.session):
                while end.take() or end.deliver():
                    pass
        await site.pass_time(1)
        assert site.session.attachment is attachment
        assert site.agent.session.state is SessionState.ATTACHED
        assert "resumed" not in site.counters.attaches


async def test_the_agent_records_the_state_of_its_link_without_being_asked(
    autojump_clock: MockClock,
) -> None:
    async with open_site(Limits(grace_seconds=10)) as site:
        state = AgentState("edge1", ("a:1",), trio.current_time)
        assert site.agent.session is not None
        state.attached(site.agent.session)
        site.on_state_change = state.note_link
        await site.streams()
        await trio.sleep(2.5)  # nothing moves, and nothing is lost
        await site.pass_time(3)  # what was late comes after all, over the same carrier
        recovered = trio.current_time()
        await site.pass_time(10)
        lose_all(site)
        await site.pass_time(5)
        view = state.link_view
        assert [event.kind for event in view.events] == [
            "resumed",
            "grace",
            "attached",
            "degraded",
            "attached",
        ]
        assert view.events[2].at < recovered
        assert (view.events[1].reason, view.events[1].detail) == (Reason.CARRIER_LOST, "lost by the test")


async def test_a_black_hole_is_left_within_seconds_once_another_path_works(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        dead = list(site.network.ends)
        site.network.ends.clear()  # neither end is informed
        near.send_nowait(b"?")
        start = trio.current_time()
        while not far._mux.recv.buffered:
            await site.flush()
            await trio.sleep(0.1)
            assert trio.current_time() < start + 3.5
        assert read(far) == b"?"
        assert all(end.port is None for end in dead), "abandoned by both ends"


async def test_the_end_of_the_grace_resets_streams_at_both_ends(autojump_clock: MockClock) -> None:
    async with open_site(Limits(grace_seconds=10)) as site:
        near, far = await site.streams()
        session = site.session.session_id
        lose_all(site)
        for _ in range(60):
            await trio.sleep(0.25)
            lose_all(site)
        for stream in (near, far):
            with pytest.raises(StreamReset) as caught:
                stream.receive_nowait(1)
            assert caught.value.reason is Reason.GRACE_EXPIRED
            assert "did not come back within 10 s" in caught.value.detail
        assert site.counters.session_ends == {"grace_expired": 1}
        await site.pass_time(40)
        assert site.session.attached and site.session.session_id != session


async def test_an_open_waits_a_little_for_the_link(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        await site.flush()
        lose_all(site)
        await site.settle()
        first = site.open()
        await site.pass_time(1)
        await first.wait_opened()
        lose_all(site)
        await site.settle()
        second = site.open()
        start = trio.current_time()
        with pytest.raises(Refused) as caught:
            await second.wait_opened()
        assert trio.current_time() - start == pytest.approx(3, abs=0.1)
        assert caught.value.reason is Reason.NODE_NOT_ATTACHED
        assert "link lost 3 s ago" in caught.value.detail
        opened = len(site.far)
        await site.pass_time(3)
        assert len(site.far) == opened, "it left no trace"


async def test_a_restarted_agent_resets_the_old_streams_at_once(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, _ = await site.streams()
        site.kill_agent()
        await site.settle()
        await site.flush()
        assert site.session.state is SessionState.GRACE
        site.start_agent(b"j" * 16)
        await site.pass_time(0.5)
        with pytest.raises(StreamReset) as caught:
            near.receive_nowait(1)
        assert caught.value.reason is Reason.AGENT_RESTARTED
        assert site.session.attached


async def test_a_restarted_server_resets_the_old_streams_at_once(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        _, far = await site.streams()
        site.kill_server()
        attempts = site.agent.attempts
        await site.pass_time(0.75)
        with pytest.raises(StreamReset) as caught:
            far.receive_nowait(1)
        assert caught.value.reason is Reason.UNKNOWN_SESSION
        await site.pass_time(3)
        assert site.session.attached and site.agent.ends == [Reason.UNKNOWN_SESSION]
        assert site.agent.attempts == attempts + 1, "the new session began where the old one was asked for"
        near, far = await site.streams()
        near.send_nowait(b"it works")
        await site.pass_time(1)
        assert read(far) == b"it works"


async def test_a_session_that_is_offered_too_late_is_begun_elsewhere(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        site.kill_server()
        await site.flush()
        assert site.agent.offered is not None
        lose_all(site)
        await site.pass_time(5)
        assert site.session.attached


async def test_a_wrong_secret_disturbs_no_session(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, far = await site.streams()
        assert site.agent.session is not None
        true = site.agent.session.welcome
        site.agent.session.welcome = true._replace(secret=type(true.secret)(b"guess" * 6))
        caught: list[Refused] = []

        async def steal() -> None:
            try:
                await site.agent.attach(5)
            except Refused as refused:
                caught.append(refused)

        site.nursery.start_soon(steal)
        await site.pass_time(1)
        assert [refused.reason for refused in caught] == [Reason.SESSION_MISMATCH]
        site.agent.session.welcome = true
        near.send_nowait(b"undisturbed")
        await site.pass_time(1)
        assert read(far) == b"undisturbed"


async def test_a_changed_route_tries_at_once_and_not_too_often(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        await site.flush()
        attachment, before = site.session.attachment, site.agent.attempts
        assert site.agent.failover is not None
        for _ in range(5):
            site.agent.failover.route_changed()
            await site.settle()
        assert site.agent.attempts == before + 1
        await site.pass_time(6)
        assert site.session.attachment is attachment, "its ping was answered, so it stays"
        site.agent.failover.route_changed()
        await site.settle()
        assert site.agent.attempts == before + 2


async def test_a_bye_ends_without_grace_and_nothing_waits_for_a_carrier(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, _ = await site.streams()
        lose_all(site)
        await site.settle()
        session, start = site.session, trio.current_time()
        session.end(Reason.SERVER_STOPPING)
        await session.wait_given_up()
        assert trio.current_time() == start
        with pytest.raises(StreamReset):
            near.receive_nowait(1)
        await site.pass_time(3)
        assert site.agent.ends == [Reason.UNKNOWN_SESSION]


async def test_on_a_slow_path_a_bye_has_the_time_that_it_needs(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        near, _ = await site.streams()
        session = site.session
        assert site.agent.session is not None
        site.agent.session._protocol.liveness.response_timeout_seconds = 2.0
        site.agent.session.end(Reason.AGENT_STOPPING)
        await trio.sleep(1.5)
        await site.flush()
        assert session.ended is not None and session.ended[0] is Reason.AGENT_STOPPING
        with pytest.raises(StreamReset):
            near.receive_nowait(1)


async def test_idle_links_ping_seldom_and_busy_ones_every_second(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        await site.pass_time(20)
        assert site.agent.session is not None
        session = site.agent.session._protocol
        before = session.liveness._token
        await site.pass_time(30)
        assert session.liveness._token - before == 2
        near, _ = await site.streams()
        before = session.liveness._token
        await site.pass_time(10)
        assert 9 <= session.liveness._token - before <= 11
        near.reset(Reason.USER_LEFT)
