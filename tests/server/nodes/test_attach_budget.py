"""Limits of one certificate at the agents' port: calls without a hello, bytes, attaches."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from certs.ca import Leaf
from certs.x509 import facts_of
from tests.server.nodes.test_attach import SERVER, STRANGER, USER, Agent, AgentsPort, open_agents_port
from tests.server.nodes.test_attach_revoked import going_on
from tests.support.fakes import memory_link
from tests.support.fakes.memory_carrier import memory_carriers
from tests.support.pki import authority as pki
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason
from tunnel_core.session.handshake import AttachRejected
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Packet, Rejected, Service
from tunnel_server.accounting.write_budget import WRITES
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.events.event_log import EventKind
from tunnel_server.nodes.attach_budget import ATTACH_SECONDS, ATTACHES, RESUMES

LIMITS = Limits()
MOST = LIMITS.max_attaches_per_identity
NODE = pki.node_leaf("edge1").credential.certificate_pem


class Call:
    """A call whose agent sends nothing by itself."""

    def __init__(self, agents_port: AgentsPort, leaf_pem: bytes = NODE) -> None:
        self.near, self.far = memory_carriers(agents_port.nursery, leaf_pem=leaf_pem)
        agents_port.acceptor.take(self.near)

    @property
    def is_open(self) -> bool:
        return self.near._lost is None

    @property
    def rejected(self) -> Rejected:
        packet = decode_packet(self.near.packets[0])
        assert isinstance(packet, Packet)
        (frame,) = packet.frames
        assert isinstance(frame, Rejected)
        return frame


def another_run() -> dict[str, bytes]:
    """Return the fields of a hello of another run of an agent on another machine."""
    return {"instance": os.urandom(16), "boot": os.urandom(16)}


@pytest.mark.parametrize("leaf_pem", [USER, SERVER, STRANGER], ids=["user", "server", "stranger"])
async def test_a_caller_that_is_no_node_is_refused_without_a_hello(
    leaf_pem: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_agents_port() as agents_port:
        call, now = Call(agents_port, leaf_pem), trio.current_time()
        await agents_port.settle()
        assert trio.current_time() == now
        assert call.rejected.reason in (Reason.WRONG_ROLE, Reason.WRONG_TRUST_DOMAIN)
        await trio.sleep(1.5)
        assert not call.is_open
        assert len(agents_port.acceptor._pending) == 0


async def test_a_revoked_node_is_refused_without_a_hello(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        agents_port.revoke(RevocationKind.NODE, "edge1")
        call = Call(agents_port)
        await agents_port.settle()
        assert (call.rejected.reason, call.rejected.retry_after_ms) == (Reason.REVOKED, 300_000)


async def test_a_revoked_certificate_keeps_no_agent_with_a_valid_one_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        stolen = pki.authority().issue(Role.NODE, "edge1").credential.certificate_pem
        agents_port.revoke(RevocationKind.SERIAL, facts_of(stolen).serial)
        good = Call(agents_port)
        refused = [Call(agents_port, stolen) for _ in range(2 * MOST)]
        await agents_port.settle()
        assert good.is_open
        assert [call.is_open for call in refused] == [False] * MOST + [True] * MOST
        await agents_port.attach("edge1")


async def test_calls_without_a_hello_end_after_two_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        calls = [Call(agents_port), Call(agents_port)]
        await trio.sleep(LIMITS.hello_timeout_seconds - 0.1)
        assert all(call.is_open for call in calls)
        await trio.sleep(0.2)
        assert sum(call.is_open for call in calls) == 1
        assert agents_port.counters.attaches == {"attach_timeout": 1}
        await trio.sleep(LIMITS.attach_timeout_seconds - LIMITS.hello_timeout_seconds)
        assert not any(call.is_open for call in calls)


async def test_the_hello_of_a_machine_that_is_overloaded_may_be_late(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        agent = agents_port.dial("edge1")
        await trio.sleep(LIMITS.attach_timeout_seconds - 1)
        await agent.attach(agents_port.limits)
        await agents_port.settle()
        assert agents_port.nodes.is_attached("edge1")


async def test_a_server_that_was_paused_reads_a_hello_that_waits(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        agent = agents_port.dial("edge1")
        agents_port.nursery.start_soon(agent.attach, agents_port.limits)
        await agents_port.settle()
        mock_clock.jump(LIMITS.hello_timeout_seconds * 5)
        await agents_port.settle()
        assert agents_port.nodes.is_attached("edge1")


async def test_one_certificate_has_few_calls_and_the_newest_stay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port(max_pending=MOST + 1) as agents_port:
        calls = [Call(agents_port) for _ in range(100)]
        await agents_port.settle()
        assert [call.is_open for call in calls] == [False] * (100 - MOST) + [True] * MOST
        assert len(agents_port.acceptor._pending) == MOST
        assert agents_port.counters.attaches == {"too_many_attaches": 100 - MOST}
        await agents_port.attach("edge2")


async def test_the_calls_of_one_user_take_no_place_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port(max_pending=3 * MOST) as agents_port:
        calls = [Call(agents_port, USER) for _ in range(50)]
        calls += [Call(agents_port, STRANGER) for _ in range(50)]
        await agents_port.settle()
        assert sum(call.is_open for call in calls) == 2 * MOST
        await agents_port.attach("edge1")


async def test_a_flood_of_calls_leaves_a_session_alone(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1")
        for _ in range(50):
            Call(agents_port)
        await agents_port.settle()
        assert agent.session.attached and agents_port.session_of("edge1").attached


async def test_bytes_before_use_are_bounded_in_total(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        for size in (LIMITS.max_attach_bytes + 1, LIMITS.max_message_bytes):
            call = Call(agents_port)
            await call.far._sender.send(bytes(size))
            await agents_port.settle()
            assert not call.is_open
        assert agents_port.counters.attaches == {"malformed_packet": 2}


def test_the_longest_hello_that_a_configuration_allows_fits() -> None:
    target = "a." * 125 + "abc:65535"
    services = tuple(Service(f"s{number:062d}", "https", target) for number in range(LIMITS.max_services))
    sent_hello = memory_link.hello(LIMITS)._replace(services=services, session=bytes(16), secret=bytes(32))
    assert len(target.rpartition(":")[0]) == 253
    assert (
        LIMITS.max_attach_bytes * 0.8
        < len(encode_packet(0, 0, [sent_hello]))
        < LIMITS.max_attach_bytes - 1024
    )


async def test_a_node_has_some_attaches_at_once_and_then_one_now_and_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        for _ in range(ATTACHES):
            await agents_port.attach("edge1", instance=os.urandom(16))
        events = len(agents_port.nodes.events.after())
        refusal = await agents_port.dial("edge1", instance=os.urandom(16)).refusal()
        assert refusal.reason is Reason.TOO_MANY_ATTACHES
        assert 0 < refusal.retry_after_seconds <= ATTACH_SECONDS
        assert "revoke edge1" in refusal.detail
        assert len(agents_port.nodes.events.after()) == events
        assert agents_port.counters.attaches["ok"] == ATTACHES
        await agents_port.attach("edge2")
        await trio.sleep(refusal.retry_after_seconds)
        await agents_port.attach("edge1", instance=os.urandom(16))


async def test_a_fleet_that_comes_at_once_has_a_budget_for_each(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port(max_agents=300, max_pending=300) as agents_port:
        now = trio.current_time()
        for number in range(200):
            await agents_port.attach(f"edge{number}", leaf_pem=leaf(number).credential.certificate_pem)
        assert trio.current_time() == now
        assert agents_port.counters.attaches == {"ok": 200}


def leaf(number: int) -> Leaf:
    return pki.node_leaf(f"edge{number}")


async def go_on(agents_port: AgentsPort, agent: Agent, attempt: int) -> Agent:
    again = going_on(agents_port, agent, leaf(1), attempt=attempt)
    await again.welcomed()
    return again


async def test_a_flood_of_attaches_does_not_keep_the_agent_from_its_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Another program with the same certificate used up the budget, and the agent resumes after an outage."""
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent = await agents_port.attach("edge1")
        agent.carrier.cut()
        await agents_port.settle()
        for _ in range(2 * ATTACHES):
            rogue = agents_port.dial("edge1", **another_run())
            with pytest.raises(AttachRejected) as caught:
                for _ in range(2 * ATTACHES):
                    await rogue.welcomed()
                    rogue = agents_port.dial("edge1", **another_run())
            assert caught.value.reason is Reason.TOO_MANY_ATTACHES
        again = await go_on(agents_port, agent, 2)
        assert again.attempt.welcome.resumed


async def test_resumptions_have_a_larger_budget_that_ends_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent = await agents_port.attach("edge1")
        for attempt in range(2, 2 + RESUMES):
            (await go_on(agents_port, agent, attempt)).attempt.abandon()
        with pytest.raises(AttachRejected) as caught:
            await go_on(agents_port, agent, 100)
        assert caught.value.reason is Reason.TOO_MANY_ATTACHES
        await trio.sleep(1)
        await go_on(agents_port, agent, 101)


async def test_failures_of_a_node_have_one_line_a_second(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One duplicate also causes one event only."""
    caplog.set_level("INFO", "qanat")
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1")
        await agents_port.attach("edge1", **another_run())
        old = {"instance": b"i" * 16, "boot": b"b" * 16}
        for _ in range(3 * WRITES):
            refusal = await agents_port.dial("edge1", **old).refusal()
            assert refusal.reason is Reason.DUPLICATE_NODE
            await agents_port.settle()
        assert agent.session.ended is not None
        duplicates = [
            event for event in agents_port.nodes.events.after() if event.kind is EventKind.DUPLICATE
        ]
        assert len(duplicates) == 1
        assert failures(caplog) == [None], "all of them at one moment"
        await trio.sleep(1)
        await agents_port.dial("edge1", **old).refusal()
        await agents_port.settle()
        assert failures(caplog) == [None, 3 * WRITES - 1]


def failures(caplog: pytest.LogCaptureFixture) -> list[object]:
    """Return ``left_out`` of each line about a failed attach of edge1."""
    lines = (record for record in caplog.records if "attach of node edge1 failed" in record.getMessage())
    return [vars(record)["fields"].get("left_out") for record in lines]


async def test_services_that_no_agent_may_announce_are_left_out(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    good = Service("web", "http", "localhost:80")
    later = Service("desk", "rdp", "localhost:3389")
    bad = (
        Service("evil.example/", "http", "x"),
        Service("a--edge2", "http", "x"),
        Service("evil.example:80/?", "https", "x"),
        Service("WEB", "http", "x"),
        Service("", "http", "x"),
        Service("web", "https", "the second of this name"),
        Service("odd", "http://", "x"),
    )
    async with open_agents_port() as agents_port:
        agent = await agents_port.attach("edge1", services=(good, later, *bad))
        assert agents_port.session_of("edge1").services == (good, later)
        assert (
            "7 services of node edge1 are left out: their names or protocols are not valid" in caplog.messages
        )
        again = going_on(agents_port, agent, leaf(1), services=(later, *bad), use=True)
        await again.welcomed()
        await agents_port.settle()
        assert [service.name for service in agents_port.session_of("edge1").services] == ["desk", "web"]


async def test_an_agents_own_texts_cannot_command_a_terminal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port() as agents_port:
        shown = Service("web", "http", "\x1b[2Jlocalhost" + "x" * 500)
        await agents_port.attach("edge1", services=(shown,), software="agent\n\x9b31m")
        session = agents_port.session_of("edge1")
        assert session.services[0].target.startswith("?[2Jlocalhost")
        assert len(session.services[0].target) == 300
        assert session.software == "agent??31m"
