"""A revoked agent loses access at once: its session, its streams, its resumption, and every further try."""

from __future__ import annotations

from datetime import timedelta

import pytest
import trio
import trio.testing

from certs.ca import Leaf
from certs.x509 import facts_of
from tests.server.nodes.test_attach import Agent, AgentsPort, open_agents_port
from tests.support.pki import authority as pki
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_server.auth.revocation_list import RevocationKind


def serial_of(leaf: Leaf) -> str:
    return facts_of(leaf.credential.certificate_pem).serial


def renewed() -> Leaf:
    """Another certificate of edge1."""
    return pki.authority().issue(Role.NODE, "edge1")


def going_on(agents_port: AgentsPort, agent: Agent, leaf: Leaf, **changes: object) -> Agent:
    """Return a new carrier that resumes the agent's session."""
    welcome, attempt = agent.attempt.welcome, changes.pop("attempt", 2)
    known = {"session": welcome.session, "secret": welcome.secret, "attempt": attempt}
    return agents_port.dial("edge1", leaf_pem=leaf.credential.certificate_pem, **{**known, **changes})


@pytest.mark.parametrize("kind", [RevocationKind.NODE, RevocationKind.SERIAL])
async def test_the_session_and_its_streams_end_with_the_reason(
    kind: RevocationKind, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent, other = await agents_port.attach("edge1"), await agents_port.attach("edge2")
        stream, spared = await agents_port.open("edge1"), await agents_port.open("edge2")
        began = trio.current_time()
        agents_port.revoke(
            kind, "edge1" if kind is RevocationKind.NODE else serial_of(pki.node_leaf("edge1"))
        )
        with pytest.raises(StreamReset) as caught:
            await stream.receive_some()
        assert caught.value.reason is Reason.REVOKED
        assert await agent.end() is Reason.REVOKED
        assert trio.current_time() - began < 1
        await stream.aclose()
        await agents_port.settle()
        assert [node.name for node, _ in agents_port.nodes.attached()] == ["edge2"]
        assert other.session.attached and spared.ended_by is None
        assert agents_port.counters.session_ends == {"revoked": 1}
        await spared.aclose()


async def test_a_revoked_agent_cannot_attach_again(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent = await agents_port.attach("edge1")
        agents_port.revoke(RevocationKind.NODE, "edge1")
        await agent.session.wait_given_up()
        for again in (agents_port.dial("edge1"), going_on(agents_port, agent, pki.node_leaf("edge1"))):
            refusal = await again.refusal()
            assert refusal.reason is Reason.REVOKED
            assert refusal.retry_after_seconds == 300
        await trio.sleep(2)
        [line] = agents_port.audited  # the second one is counted
        assert (line.node, line.reason, line.serial) == (
            "edge1",
            "revoked",
            serial_of(pki.node_leaf("edge1")),
        )
        assert line.detail.startswith("agents: the certificate ")


async def test_a_session_in_grace_ends_too(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent = await agents_port.attach("edge1")
        stream = await agents_port.open("edge1")
        agent.carrier.cut()
        await agents_port.settle()
        agents_port.revoke(RevocationKind.NODE, "edge1")
        with pytest.raises(StreamReset) as caught:
            await stream.receive_some()
        assert caught.value.reason is Reason.REVOKED
        assert (await going_on(agents_port, agent, pki.node_leaf("edge1")).refusal()).reason is Reason.REVOKED
        await stream.aclose()


async def test_a_revocation_between_welcome_and_use_counts(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent = await agents_port.attach("edge1")
        again = going_on(agents_port, agent, late := renewed())
        await again.welcomed()
        agents_port.revoke(RevocationKind.SERIAL, serial_of(late))
        again.use(agents_port.limits)
        assert await again.end() is Reason.REVOKED
        assert agent.session.attached  # by the certificate that is not revoked


async def test_a_session_depends_on_the_certificate_of_its_current_carrier(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent, fresh = await agents_port.attach("edge1"), renewed()
        again = going_on(agents_port, agent, fresh)
        await again.welcomed()
        assert again.attempt.welcome.resumed
        again.attempt.use(agent.session)
        await agents_port.settle()
        agents_port.revoke(RevocationKind.SERIAL, serial_of(pki.node_leaf("edge1")))
        await agents_port.settle()
        assert agent.session.attached and agents_port.session_of("edge1").attached
        agents_port.revoke(RevocationKind.SERIAL, serial_of(fresh))
        assert await agent.end() is Reason.REVOKED


async def test_a_certificate_that_runs_out_ends_its_session(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port() as agents_port:
        agents_port.nursery.start_soon(agents_port.watch.watch)
        agent = await agents_port.attach("edge1")
        agents_port.set_ahead = timedelta(days=366)
        with trio.fail_after(61):
            assert await agent.end() is Reason.CERTIFICATE_EXPIRED
        assert (await agents_port.dial("edge1").refusal()).reason is Reason.CERTIFICATE_EXPIRED


async def test_another_node_with_the_right_secret_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agents_port(grace_seconds=60) as agents_port:
        agent = await agents_port.attach("edge1")
        thief = going_on(agents_port, agent, pki.node_leaf("edge2"))
        assert (await thief.refusal()).reason is Reason.SESSION_MISMATCH
        guesser = going_on(agents_port, agent, pki.node_leaf("edge1"), secret=b"x" * 32)
        assert (await guesser.refusal()).reason is Reason.SESSION_MISMATCH
        assert agent.session.attached
        await trio.sleep(2)
        assert [(line.node, line.reason) for line in agents_port.audited] == [("edge2", "session_mismatch")]
