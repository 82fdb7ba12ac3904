"""Attaches of agents: which are accepted, which are refused and why, and which session a newer one ends."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.fakes import memory_link
from tests.support.fakes.credentials import credential_watch
from tests.support.fakes.memory_carrier import MemoryCarrier, memory_carriers
from tests.support.fakes.replaced import with_methods
from tests.support.pki import authority as pki
from tunnel_core.carrier.interface import CarrierPort
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.names import Target, node_alias
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import VERSION, AgentHandshake, AttachRejected
from tunnel_core.session.session import Session
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream
from tunnel_core.telemetry.counters import Counters
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.revocation_list import Revocation, RevocationKind, RevocationList
from tunnel_server.nodes.attach import AttachSettings, SessionAcceptor
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.audit import AuditLine

TARGET = Target.parse("localhost:22")


class Agent:
    """The agent's end of an attach, and the server's end of its carrier."""

    session: Session

    def __init__(self, attempt: Attachment, carrier: MemoryCarrier, nursery: trio.Nursery) -> None:
        self.on_open: Callable[[TunnelStream], None] = lambda stream: stream.accept("127.0.0.1:22")
        self.attempt = attempt
        self.carrier = carrier
        self.nursery = nursery

    async def refusal(self) -> AttachRejected:
        with pytest.raises(AttachRejected) as caught:
            await self.welcomed()
        return caught.value

    async def welcomed(self) -> None:
        await self.attempt.settle(10)

    async def attach(self, limits: Limits) -> None:
        """Raises ``Refused``."""
        await self.welcomed()
        self.use(limits)

    def use(self, limits: Limits) -> None:
        assert self.attempt.handshake.hello is not None
        self.session = Session(
            self.attempt.handshake.hello,
            self.attempt.welcome,
            opener=False,
            node="edge1",
            limits=limits,
            pool=CreditPool(limits.credit_pool),
            on_open=lambda stream: self.on_open(stream),
        )
        self.attempt.use(self.session)
        self.nursery.start_soon(self.session.run)

    async def end(self) -> Reason:
        return (await self.session.wait_ended())[0]


class AgentsPort:
    """A server reduced to the agents' port."""

    def __init__(
        self, nursery: trio.Nursery, max_agents: int = 100, max_pending: int = 100, grace_seconds: float = 0
    ) -> None:
        self.nursery = nursery
        self.limits = Limits(grace_seconds=grace_seconds)
        self.counters = Counters()
        self.nodes = Nodes(trio.current_time, lambda: datetime.now(UTC), lambda name: False)
        self._settings = AttachSettings(pki.TRUST_DOMAIN, max_agents, self.limits, max_pending)
        self.set_ahead = timedelta()  # the wall clock
        self.revoked, self.audited = RevocationList(), list[AuditLine]()
        self.watch = credential_watch(self.revoked, lambda: datetime.now(UTC) + self.set_ahead)
        self.refusals = Refusals(self.audited.append, trio.current_time)
        self.make_acceptor(self.watch)

    def make_acceptor(self, watch: CredentialWatch) -> None:
        pool = CreditPool(self.limits.credit_pool)
        self.acceptor = SessionAcceptor(
            self._settings,
            self.nodes,
            pool,
            self.nursery,
            self.counters,
            credential_watch=watch,
            refusals=self.refusals,
            trust_bundle=bytes,
        )

    def revoke(self, kind: RevocationKind, subject: str) -> None:
        self.revoked.put(Revocation(1, kind, subject, 0, "uid-0", ""))

    def dial(self, name: str, *, leaf_pem: bytes | None = None, **changes: Any) -> Agent:
        """Return an agent of node ``name`` that dials, by default with its own certificate.

        ``changes`` replaces fields of its hello.
        """
        if leaf_pem is None:
            leaf_pem = pki.node_leaf(name).credential.certificate_pem
        near, far = memory_carriers(self.nursery, leaf_pem=leaf_pem)
        self.acceptor.take(near)
        hello = memory_link.hello(self.limits)._replace(**changes)
        return Agent(Attachment(far, AgentHandshake(hello)), near, self.nursery)

    async def attach(self, name: str, **changes: Any) -> Agent:
        agent = self.dial(name, **changes)
        await agent.attach(self.limits)
        await self.settle()
        return agent

    async def settle(self) -> None:
        """Wait until no task has work left without the clock."""
        await trio.testing.wait_all_tasks_blocked()

    def session_of(self, name: str) -> Session:
        return self.nodes.session_of(name)

    async def open(self, name: str) -> TunnelStream:
        stream = self.session_of(name).open(TARGET, user="kim", entrance="tcp")
        await stream.wait_opened()
        return stream


@asynccontextmanager
async def open_agents_port(
    max_agents: int = 100, max_pending: int = 100, grace_seconds: float = 0
) -> AsyncIterator[AgentsPort]:
    async with trio.open_nursery() as nursery:
        yield AgentsPort(nursery, max_agents, max_pending, grace_seconds)
        nursery.cancel_scope.cancel()


async def test_a_node_has_the_name_in_its_certificate(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("shop-7.example")
        [(node, session)] = agents_port.nodes.attached()
        assert (node.name, node.alias) == ("shop-7.example", node_alias("shop-7.example"))
        assert session.session_id == agent.session.session_id
        assert len(agents_port.acceptor._pending) == 0
        assert agents_port.counters.attaches == {"ok": 1}
        agent.session.end(Reason.AGENT_STOPPING)
        await agent.session.wait_given_up()
        await trio.sleep(2)
        assert agents_port.nodes.attached() == []
        assert agents_port.counters.session_ends == {"agent_stopping": 1}


USER = pki.user_leaf("kim").credential.certificate_pem
SERVER = pki.server_leaf().credential.certificate_pem
STRANGER = pki.node_leaf("edge1", "other.example").credential.certificate_pem
# A root names only its trust domain, and is no leaf; an invalid certificate names no node either.
ROOT = pki.authority().roots_pem


@pytest.mark.parametrize(
    ("leaf_pem", "reason", "words"),
    [
        (USER, Reason.WRONG_ROLE, "user/kim is not a node's"),
        (SERVER, Reason.WRONG_ROLE, "server/main is not a node's"),
        (STRANGER, Reason.WRONG_TRUST_DOMAIN, "from another trust domain than test.internal"),
        (ROOT, Reason.UNAUTHENTICATED, "names no identity"),
        (b"", Reason.UNAUTHENTICATED, "names no identity"),
        (b"-----BEGIN nonsense", Reason.UNAUTHENTICATED, "names no identity"),
    ],
)
async def test_a_caller_that_is_no_node_gets_the_reason(
    leaf_pem: bytes,
    reason: Reason,
    words: str,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_agents_port() as agents_port:
        agent = agents_port.dial("edge1", leaf_pem=leaf_pem)
        refusal = await agent.refusal()
        assert refusal.reason is reason
        assert words in refusal.detail
        assert refusal.retry_after_seconds == 5
        await trio.sleep(2)
        assert (len(agents_port.acceptor._pending), agents_port.nodes.all()) == (0, [])
        assert agents_port.counters.attaches == {reason.word: 1}
        assert f"attach of an unknown node failed: {refusal.detail}" in caplog.messages


async def test_another_version_gets_both_versions(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        refusal = await agents_port.dial("edge1", version=VERSION + 1).refusal()
        assert refusal.reason is Reason.VERSION_MISMATCH
        assert f"version {VERSION}, the agent {VERSION + 1}" in refusal.detail


async def test_the_limit_of_agents_spares_resumed_sessions(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port(max_agents=2) as agents_port:
        first, _ = await agents_port.attach("edge1"), await agents_port.attach("edge2")
        refusal = await agents_port.dial("edge3").refusal()
        assert refusal.reason is Reason.TOO_MANY_SESSIONS
        assert "[agents] max" in refusal.detail
        again = await agents_port.attach("edge1")
        assert await first.end() is Reason.TAKEN_OVER
        again.carrier.cut()
        assert await again.end() is Reason.CARRIER_LOST
        await agents_port.settle()
        await agents_port.attach("edge3")


async def test_one_of_two_welcomed_agents_gets_the_last_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port(max_agents=1) as agents_port:
        agents = [agents_port.dial("edge1"), agents_port.dial("edge2")]
        for agent in agents:
            await agent.welcomed()
        for agent in agents:
            agent.use(agents_port.limits)
        await trio.sleep(1)
        assert agents_port.nodes.attached_count == 1
        [loser] = [agent for agent in agents if agent.session.ended is not None]
        assert await loser.end() is Reason.TOO_MANY_SESSIONS
        await trio.sleep(2)
        assert agents_port.counters.attaches == {"ok": 1, "too_many_sessions": 1}
        assert not agents_port.counters.session_ends
        assert agents_port.nodes.attached_count == 1


async def test_attaches_under_way_are_bounded_and_end(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port(max_pending=3) as agents_port:
        for number in range(3):
            leaf_pem = pki.node_leaf(f"mute{number}").credential.certificate_pem
            agents_port.acceptor.take(memory_carriers(agents_port.nursery, leaf_pem=leaf_pem)[0])
        assert len(agents_port.acceptor._pending) == 3
        refusal = await agents_port.dial("edge1").refusal()
        assert refusal.reason is Reason.TOO_MANY_SESSIONS
        await trio.sleep(agents_port.limits.attach_timeout_seconds + 2)
        assert len(agents_port.acceptor._pending) == 0
        assert agents_port.counters.attaches["attach_timeout"] == 3
        await agents_port.attach("edge1")


async def test_the_newcomer_of_two_with_one_alias_is_turned_away(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel_server.nodes.registry.node_alias", lambda name: "same")
    async with open_agents_port() as agents_port:
        first = await agents_port.attach("edge1")
        newcomer = await agents_port.attach("edge2")
        reason, detail = await newcomer.session.wait_ended()
        assert reason is Reason.AMBIGUOUS_NAME
        assert "rename one of them" in detail
        await trio.sleep(2)
        assert first.session.attached
        assert [node.name for node, _ in agents_port.nodes.attached()] == ["edge1"]
        assert agents_port.counters.attaches == {"ok": 1, "ambiguous_name": 1}
        assert not agents_port.counters.session_ends


async def test_a_stopping_server_accepts_no_attach(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        await agents_port.attach("edge1")
        agents_port.acceptor.drain(8)
        assert (await agents_port.dial("edge2").refusal()).reason is Reason.SERVER_STOPPING
        with pytest.raises(Refused) as caught:
            agents_port.session_of("edge1").open(TARGET, user="kim", entrance="tcp")
        assert caught.value.reason is Reason.SERVER_STOPPING


async def test_an_agent_welcomed_before_the_stop_is_refused_after_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        agent = agents_port.dial("edge1")
        await agent.welcomed()
        agents_port.acceptor.drain(8)
        agent.use(agents_port.limits)
        assert await agent.end() is Reason.SERVER_STOPPING
        assert agents_port.nodes.attached() == []


async def test_ending_all_waits_until_the_agents_received_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        agents = [await agents_port.attach(name) for name in ("edge1", "edge2")]
        stream = await agents_port.open("edge1")
        assert agents_port.acceptor.stream_count == 1
        await agents_port.acceptor.end_all(Reason.SERVER_STOPPING)
        assert [await agent.end() for agent in agents] == [Reason.SERVER_STOPPING] * 2
        with pytest.raises(StreamReset) as caught:
            await stream.receive_some()
        assert caught.value.reason is Reason.SERVER_STOPPING
        await stream.aclose()


async def test_the_newest_verified_session_wins_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        old = await agents_port.attach("edge1")
        stream = await agents_port.open("edge1")
        began = trio.current_time()
        new = await agents_port.attach("edge1")
        assert trio.current_time() == began
        assert agents_port.session_of("edge1").session_id == new.session.session_id
        with pytest.raises(StreamReset) as caught:
            await stream.receive_some()
        assert caught.value.reason is Reason.TAKEN_OVER
        await stream.aclose()
        assert await old.end() is Reason.TAKEN_OVER
        await trio.sleep(5)  # the old session is given up, and its remains take nothing of the new one along
        assert agents_port.session_of("edge1").session_id == new.session.session_id
        assert agents_port.counters.session_ends == {"taken_over": 1}
        again = await agents_port.open("edge1")
        await again.aclose()
        assert new.session.attached


async def test_a_half_open_session_is_taken_over_though_its_agent_receives_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        old = await agents_port.attach("edge1")
        old.carrier.wake = lambda: None  # type: ignore[method-assign]  # its packets go nowhere
        new = await agents_port.attach("edge1")
        await trio.sleep(2)
        assert agents_port.session_of("edge1").session_id == new.session.session_id
        assert agents_port.counters.session_ends == {"taken_over": 1}


async def test_a_hello_alone_takes_nothing_over(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1")
        check = agents_port.dial("edge1")
        await check.welcomed()
        check.attempt.abandon()
        await trio.sleep(agents_port.limits.attach_timeout_seconds + 2)
        assert agent.session.attached
        assert agents_port.session_of("edge1").session_id == agent.session.session_id
        assert agents_port.counters.attaches == {"ok": 1}  # a check is no failure
        assert "node edge1 may attach, and left; a check does that" in caplog.messages
        assert len(agents_port.acceptor._pending) == 0


async def test_an_attempt_that_was_left_before_its_welcome_is_no_failure(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "qanat")
    async with open_agents_port() as agents_port:
        agents_port.dial("edge1").attempt.carrier.abandon()
        await trio.sleep(agents_port.limits.attach_timeout_seconds + 2)
        assert agents_port.counters.attaches == {"abandoned": 1}
        assert [record.levelname for record in caplog.records if "abandoned an attach" in record.message] == [
            "DEBUG"
        ]
        assert not [record for record in caplog.records if record.levelno > logging.INFO]
        assert len(agents_port.acceptor._pending) == 0


async def test_a_lost_carrier_detaches_the_node_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1")
        began = trio.current_time()
        agent.carrier.cut()
        await agent.end()
        await agents_port.settle()
        assert trio.current_time() == began
        assert agents_port.nodes.attached() == []
        [node] = agents_port.nodes.all()
        assert node.last_reason is Reason.CARRIER_LOST


def fail() -> None:
    raise RuntimeError("a bug")


async def test_a_link_that_crashes_takes_neither_server_nor_node_along(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1")
        stream = await agents_port.open("edge1")
        session = agents_port.session_of("edge1")
        session._protocol = with_methods(session._protocol, tick=lambda _: fail())
        agent.carrier.swallow = True
        with trio.fail_after(100), pytest.raises(StreamReset) as caught:
            await stream.receive_some()
        assert caught.value.reason is Reason.INTERNAL_ERROR
        await stream.aclose()
        await agents_port.settle()
        assert agents_port.nodes.attached() == []
        assert agents_port.counters.session_ends == {"internal_error": 1}
        assert "the session of node edge1 failed" in caplog.messages
        await agents_port.attach("edge1")


class UnstartableCarrier(MemoryCarrier):
    def start(self, port: CarrierPort) -> None:
        raise RuntimeError("a bug")


async def test_a_carrier_that_cannot_start_is_given_up(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_agents_port() as agents_port:
        near, far = memory_carriers(
            agents_port.nursery, leaf_pem=pki.node_leaf("edge1").credential.certificate_pem
        )
        near.__class__ = UnstartableCarrier
        agents_port.acceptor.take(near)
        await agents_port.settle()
        assert len(agents_port.acceptor._pending) == 0
        assert agents_port.counters.attaches == {"internal_error": 1}
        assert far._lost is not None


async def test_failures_get_a_line_a_second_for_each_reason(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_agents_port() as agents_port:
        for _ in range(5):
            await agents_port.dial("edge1", leaf_pem=USER).refusal()
            await agents_port.settle()
        await trio.sleep(2)
        assert len([line for line in caplog.messages if "failed" in line]) == 1
        assert agents_port.counters.attaches == {"wrong_role": 5}


# The agent's settings for its link.


@pytest.mark.parametrize(
    ("metered", "configured", "welcomed"),
    [(False, 15, 15), (True, 15, 200), (False, 300, 300), (True, 300, 300), (False, 1, 1)],
)
async def test_a_metered_agent_pings_seldom_and_a_slower_server_wins(
    metered: bool, configured: float, welcomed: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_agents_port() as agents_port:
        limits = dataclasses.replace(agents_port.limits, ping_interval_seconds=configured)
        settings = AttachSettings(pki.TRUST_DOMAIN, 100, limits)
        pool = CreditPool(limits.credit_pool)
        agents_port.acceptor = SessionAcceptor(
            settings,
            agents_port.nodes,
            pool,
            agents_port.nursery,
            agents_port.counters,
            credential_watch=agents_port.watch,
            refusals=agents_port.refusals,
            trust_bundle=bytes,
        )
        agent = await agents_port.attach("edge1", metered=metered)
        assert agent.attempt.welcome.ping_interval_ms == welcomed * 1000


async def test_an_idle_metered_link_lives_by_its_few_pings(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1", metered=True)
        await trio.sleep(3600)
        assert agent.session.attached and agents_port.session_of("edge1").attached
        assert len(agent.carrier.packets) < 60


async def test_the_server_keeps_to_the_rate_that_an_agent_asks_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1", max_bytes_per_second=10_000)
        stream = await agents_port.open("edge1")
        (far,) = agent.session.streams.values()
        start = trio.current_time()
        received = 0

        async def send() -> None:
            await stream.send_all(bytes(100_000))

        agents_port.nursery.start_soon(send)
        while received < 100_000:
            received += len(await far.receive_some())
        assert 9 < trio.current_time() - start < 11
        await far.send_all(bytes(100_000))  # the agent has no cap of its own here
        received = 0
        while received < 100_000:
            received += len(await stream.receive_some())
        assert trio.current_time() - start < 11
        assert agents_port.session_of("edge1").attached
        stream.reset(Reason.USER_LEFT)
