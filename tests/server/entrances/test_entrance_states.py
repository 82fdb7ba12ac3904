"""The answer to a user at every entrance, in every state of a node, with the matching logs and metrics.

Real sockets and TLS in front, real sessions behind over carriers in memory; the clock is the test's.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.server.entrances.test_https import client_context, tls_files
from tests.server.nodes.test_attach import Agent, AgentsPort
from tests.support.fakes.edge import receive_all, receive_until, recording
from tests.support.fakes.granting import open_access
from tests.support.net.dialling import dial
from tests.support.pki import authority as pki
from tunnel_client.tunnel import TunnelRequest, open_tunnel
from tunnel_core.config.types import Log, StreamLog
from tunnel_core.http.server import HeadLimits
from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.state import SessionState
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import SocketTlsStream
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_server.access.opener import Opener
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.auth.identify import Identify, identify_by_certificate
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.auth.users import User
from tunnel_server.entrances.connect import ConnectEntrance
from tunnel_server.entrances.https import HttpsEntrance
from tunnel_server.entrances.tcp import TcpEntrance, TcpForward
from tunnel_server.entrances.web.entrance import WebEntrance
from tunnel_server.entrances.web.login import LoopbackLogin
from tunnel_server.listeners.addresses import UnixAddress
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import AcceptedConnection, Handler, listen_tcp, listen_unix
from tunnel_server.listeners.tls import TlsContexts, over_tls

NODE = "edge1"
OPEN_WAIT, OPEN_TIMEOUT, GRACE = 3, 30, 40
GET = b"GET / HTTP/1.1\r\nHost: red--edge1.localhost\r\n"
CONNECT = b"CONNECT edge1:22 HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nanswer"  # three bytes are still to come
SWITCH = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nanswer"


def closes_hard(stream: SocketStream) -> None:
    stream.abort()


@dataclass
class Site:
    """A server with one node, and its time."""

    agents_port: AgentsPort
    clock: MockClock
    folder: Path
    nursery: trio.Nursery
    records: StreamRecorder
    agent: Agent = field(init=False)
    arrived: list[TunnelStream] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @property
    def opener(self) -> Opener:
        return Opener(
            self.agents_port.nodes,
            self.records,
            trust_domain=pki.TRUST_DOMAIN,
            access=open_access(pki.TRUST_DOMAIN),
            credential_watch=self.agents_port.watch,
        )

    async def attach(self, **changes: object) -> Agent:
        agent = self.agents_port.dial(NODE, **changes)
        agent.on_open = self.arrived.append
        await agent.attach(self.agents_port.limits)
        await self.settle()
        return agent

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked(0.002)

    async def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.jump(1)
            await self.settle()

    async def resume(self) -> None:
        """Resume the agent's session over another carrier."""
        welcome = self.agent.attempt.welcome
        again = self.agents_port.dial(NODE, session=welcome.session, secret=welcome.secret, attempt=2)
        await again.welcomed()
        again.attempt.use(self.agent.session)
        await self.settle()

    async def listen(self, entrance: str, handler: Handler) -> str:
        listener = await listen_tcp(
            entrance, ["127.0.0.1:0"], Admission(99, 99, clock=trio.current_time), self.records
        )
        await self.nursery.start(listener.serve, handler)
        return str(listener.addresses[0])

    def https_entrance(self, identify: Identify) -> HttpsEntrance:
        return HttpsEntrance(
            "https",
            [ConnectEntrance(self.opener).section()],
            identify=identify,
            credential_watch=self.agents_port.watch,
            records=self.records,
            limits=HeadLimits(),
            users=None,
        )

    async def listen_https(self) -> str:
        contexts = TlsContexts(tls_files(self.folder))
        https_entrance = self.https_entrance(identify_by_certificate(pki.TRUST_DOMAIN))
        return await self.listen("https", over_tls("https", contexts, 5, https_entrance.serve, self.records))


@asynccontextmanager
async def open_site(clock: MockClock, folder: Path, *, attaches: bool) -> AsyncIterator[Site]:
    async with trio.open_nursery() as nursery:
        agents_port = AgentsPort(nursery, grace_seconds=GRACE)
        refusals = Refusals(agents_port.audited.append, trio.current_time)
        records = StreamRecorder(
            agents_port.counters, Log(streams=StreamLog.ALL), trio.current_time, refusals, recording([])
        )
        site = Site(agents_port, clock, folder, nursery, records)
        if attaches:
            site.agent = await site.attach()
        try:
            yield site
        finally:
            for asked in site.asked:
                asked.close()
        nursery.cancel_scope.cancel()


# The entrances.


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Fail if the block waits for the clock, which stands still."""
    with trio.CancelScope() as scope:

        async def watch() -> None:
            await trio.testing.wait_all_tasks_blocked(0.5)
            scope.cancel()

        trio.lowlevel.spawn_system_task(watch)
        yield
    assert not scope.cancelled_caught, "nothing came"


@dataclass(frozen=True)
class Outcome:
    """What the user saw of a refusal or an end. ``reason`` is None for a bare reset."""

    status: int = 0
    reason: Reason | None = None
    sentence: str = ""


class Asked:
    """One user who has asked for something over a socket."""

    def __init__(self, stream: SocketStream | SocketTlsStream) -> None:
        self.stream = stream
        self.was_reset = False

    @property
    def socket(self) -> SocketStream:
        stream = self.stream
        transport = stream.transport if isinstance(stream, SocketTlsStream) else stream
        assert isinstance(transport, SocketStream)
        return transport

    async def outcome(self) -> Outcome:
        """Wait until the server has ended the connection."""
        if self.was_reset:
            return Outcome()
        try:
            with never_waiting():
                data = await receive_all(self.stream)
        except trio.BrokenResourceError:
            return Outcome()
        if not data and self.socket.socket.family == socket.AF_UNIX:
            return Outcome()  # a unix socket has no reset: only its end can be seen
        head, _, body = data.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1.1 (\d+) ([^\r]*)", head)
        assert found is not None, data
        [word] = re.findall(rb"qanat-reason: (\w+)", head)
        assert body.startswith(word + b": ")
        return Outcome(int(found[1]), Reason[word.decode().upper()], found[2].decode())

    async def answered(self) -> None:
        """Wait until the target's answer has begun."""
        with never_waiting():
            await receive_until(self.stream, b"answer")

    def close(self) -> None:
        self.socket.close_nowait()


@dataclass(frozen=True)
class Entrance:
    """``label`` is the metric's; ``answer`` is the target's answer to ``request``."""

    name: str
    label: str
    open: Callable[[Site], Awaitable[SocketStream | SocketTlsStream]]
    request: bytes
    answer: bytes
    tells: bool = True
    ends_input: bool = False

    async def ask(self, site: Site) -> Asked:
        asked = Asked(await self.open(site))
        site.asked.append(asked)
        try:
            await asked.stream.send_all(self.request)
            if self.ends_input:
                await asked.stream.send_eof()
        except trio.BrokenResourceError:
            asked.was_reset = True
        await site.settle()
        return asked


async def _dial(address: str) -> SocketStream:
    host, _, port = address.rpartition(":")
    return SocketStream.adopt(await dial(host, int(port)))


async def _browse(site: Site) -> SocketStream:
    web = WebEntrance(site.opener, "localhost", HeadLimits(), login=LoopbackLogin(site.opener.trust_domain))
    return await _dial(await site.listen("web", web.serve))


async def _connect_tls(site: Site) -> SocketTlsStream:
    context = client_context(site.folder, pki.user_leaf("kim"))
    socket = await _dial(await site.listen_https())
    stream = SocketTlsStream(socket, context, server_hostname="localhost")
    await stream.do_handshake()
    return stream


async def _connect_unix(site: Site) -> SocketStream:
    def kim(_: AcceptedConnection) -> User:
        return User("kim", Role.USER, pki.TRUST_DOMAIN)

    path = site.folder / "connect.sock"
    listener = listen_unix(
        "connect", UnixAddress(path), Admission(99, 99, clock=trio.current_time), site.records
    )
    await site.nursery.start(listener.serve, site.https_entrance(kim).serve)
    return SocketStream.adopt(await trio.open_unix_socket(path))


async def _connect_tcp(site: Site) -> SocketStream:
    forward = TcpForward("127.0.0.1:0", NODE, Target.parse("localhost:22"))
    return await _dial(await site.listen("tcp", TcpEntrance(site.opener, forward).serve))


WEB = Entrance("web", "web", _browse, GET + b"\r\n", OK)
UPGRADE = Entrance(
    "upgrade", "web", _browse, GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", SWITCH
)
TLS = Entrance("connect-tls", "connect", _connect_tls, CONNECT, b"answer")
UNIX = Entrance("connect-unix", "connect", _connect_unix, CONNECT, b"answer")
TCP = Entrance("tcp", "tcp", _connect_tcp, b"x", b"answer", tells=False)
ENTRANCES = [
    *(WEB, UPGRADE, TLS, UNIX, TCP),
    *(
        Entrance(f"{one.name}-half-closed", one.label, one.open, one.request, one.answer, one.tells, True)
        for one in (WEB, TLS)
    ),
]


# The states.


async def nothing(site: Site) -> None:
    """The node is attached."""


async def ended(site: Site) -> None:
    site.agent.session.end(Reason.AGENT_STOPPING)
    await site.settle()


async def in_grace(site: Site) -> None:
    site.agent.carrier.cut()
    await site.settle()
    assert site.agents_port.session_of(NODE).state is SessionState.GRACE


async def degraded(site: Site) -> None:
    """A packet of the server is not acknowledged in time."""
    session = site.agents_port.session_of(NODE)
    spare = session.open(Target.parse("localhost:9"), user="kim", entrance="tcp")
    await site.settle()
    site.arrived.pop().accept("127.0.0.1:9")
    await site.pass_seconds(1)
    back = site.agent.carrier._other
    back.swallow = True
    await spare.send_all(b"x")
    await site.pass_seconds(2)
    assert session.state is SessionState.DEGRADED
    back.swallow = False


async def agent_drains(site: Site) -> None:
    site.agent.session.drain(10)
    await site.settle()


async def server_drains(site: Site) -> None:
    site.agents_port.acceptor.drain(10)
    await site.settle()


async def server_stops(site: Site) -> None:
    site.nursery.start_soon(site.agents_port.acceptor.end_all, Reason.SERVER_STOPPING)
    await site.settle()


async def taken_over(site: Site) -> None:
    await site.attach(instance=b"another run of it")


async def restarted(site: Site) -> None:
    await in_grace(site)
    await taken_over(site)


async def revoked(site: Site) -> None:
    site.agents_port.revoke(RevocationKind.NODE, NODE)
    await site.settle()


async def user_revoked(site: Site) -> None:
    site.agents_port.revoke(RevocationKind.USER, "kim")
    await site.settle()


async def grace_ends(site: Site) -> None:
    await in_grace(site)
    await site.pass_seconds(GRACE + 2)


async def grace_outlasts_the_open(site: Site) -> None:
    await in_grace(site)
    await site.pass_seconds(OPEN_TIMEOUT + 2)


async def silent_agent(site: Site) -> None:
    await site.pass_seconds(OPEN_TIMEOUT + 2)


async def no_carrier_in_time(site: Site) -> None:
    await site.pass_seconds(OPEN_WAIT + 1)


async def agent_refuses(site: Site) -> None:
    site.arrived[0].refuse(Reason.DIAL_REFUSED, "nothing listens on port 22")
    await site.settle()


async def target_resets(site: Site) -> None:
    site.arrived[0].reset(Reason.TARGET_RESET)
    await site.settle()


State = Callable[[Site], Awaitable[None]]

BEFORE: list[tuple[State, State, Reason | None]] = [
    # The node's state when the user asks; the event after it; the user's answer (None: it works).
    (nothing, nothing, None),
    (ended, nothing, Reason.NODE_NOT_ATTACHED),
    (in_grace, no_carrier_in_time, Reason.NODE_NOT_ATTACHED),
    (in_grace, Site.resume, None),
    (in_grace, taken_over, Reason.AGENT_RESTARTED),
    (in_grace, revoked, Reason.REVOKED),
    (in_grace, server_stops, Reason.SERVER_STOPPING),
    (degraded, nothing, None),
    (agent_drains, nothing, Reason.AGENT_STOPPING),
    (server_drains, nothing, Reason.SERVER_STOPPING),
    (server_stops, nothing, Reason.NODE_NOT_ATTACHED),
    (taken_over, nothing, None),
    (restarted, nothing, None),
    (revoked, nothing, Reason.NODE_NOT_ATTACHED),
    (grace_ends, nothing, Reason.NODE_NOT_ATTACHED),
]
DURING: list[tuple[State, Reason | None]] = [
    # The event while the agent dials; the user's answer.
    (agent_refuses, Reason.DIAL_REFUSED),
    (silent_agent, Reason.OPEN_TIMEOUT),
    (grace_outlasts_the_open, Reason.OPEN_TIMEOUT),
    (taken_over, Reason.TAKEN_OVER),
    (restarted, Reason.AGENT_RESTARTED),
    (revoked, Reason.REVOKED),
    (ended, Reason.AGENT_STOPPING),
    (server_stops, Reason.SERVER_STOPPING),
    (agent_drains, None),
    (server_drains, None),
]
AFTER: list[tuple[State, Reason]] = [
    # What happens behind the beginning of the answer; why the connection is reset.
    (target_resets, Reason.TARGET_RESET),
    (grace_ends, Reason.GRACE_EXPIRED),
    (taken_over, Reason.TAKEN_OVER),
    (restarted, Reason.AGENT_RESTARTED),
    (revoked, Reason.REVOKED),
    (ended, Reason.AGENT_STOPPING),
    (server_stops, Reason.SERVER_STOPPING),
]


def named(value: object) -> str:
    return value.__name__ if callable(value) else str(getattr(value, "name", value))


parametrized_by_entrance = pytest.mark.parametrize("entrance", ENTRANCES, ids=named)


def written(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Reason | None, str]]:
    """The message, reason and detail of each line about a stream or a refusal, but that it was opened."""
    lines = [record for record in caplog.records if record.name in ("qanat.streams", "qanat.refusals")]
    found = [(line.getMessage(), line.fields) for line in lines]  # type: ignore[attr-defined]
    return [
        (message, Reason[fields["reason"].upper()], fields.get("detail", ""))
        for message, fields in found
        if message != "stream opened"
    ]


def counted(site: Site) -> list[tuple[str, str]]:
    counters = site.agents_port.counters
    return [*counters.refusals, *counters.unauthenticated_refusals, *counters.closed_streams]


async def answer(site: Site, entrance: Entrance) -> None:
    """The target of the newest stream answers."""
    await site.settle()
    stream = site.arrived[-1]
    stream.accept("127.0.0.1:22")
    await stream.send_all(entrance.answer)
    await site.settle()


def check_outcome(entrance: Entrance, outcome: Outcome, reason: Reason, detail: str) -> None:
    """Check that the answer agrees with the log."""
    if not entrance.tells:
        assert outcome == Outcome()
        return
    assert (outcome.status, outcome.reason) == (reason.status, reason)
    assert outcome.sentence == (detail or reason.meaning)[:200]


@pytest.mark.parametrize(("before", "then", "reason"), BEFORE, ids=named)
@parametrized_by_entrance
async def test_a_user_asks_in_a_state(
    entrance: Entrance,
    before: State,
    then: State,
    reason: Reason | None,
    mock_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_site(mock_clock, tmp_path, attaches=True) as site:
        await before(site)
        asked = await entrance.ask(site)
        await then(site)
        if reason is None:
            await answer(site, entrance)
            await asked.answered()
            assert counted(site) == [] and written(caplog) == []
        else:
            outcome = await asked.outcome()
            await site.settle()
            [(message, logged, detail)] = written(caplog)
            assert (message, logged) == ("stream refused", reason)
            assert counted(site) == [(entrance.label, reason.word)]
            check_outcome(entrance, outcome, reason, detail)


@parametrized_by_entrance
async def test_an_unknown_node(
    entrance: Entrance, mock_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(mock_clock, tmp_path, attaches=False) as site:
        asked = await entrance.ask(site)
        outcome = await asked.outcome()
        await site.settle()
        [(_, logged, detail)] = written(caplog)
        assert logged is Reason.UNKNOWN_NODE
        assert [word for _, word in counted(site)] == ["unknown_node"]
        check_outcome(entrance, outcome, Reason.UNKNOWN_NODE, detail)


@pytest.mark.parametrize(("then", "reason"), DURING, ids=named)
@parametrized_by_entrance
async def test_something_happens_during_the_dial(
    entrance: Entrance,
    then: State,
    reason: Reason | None,
    mock_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_site(mock_clock, tmp_path, attaches=True) as site:
        asked = await entrance.ask(site)
        assert len(site.arrived) == 1
        await then(site)
        if reason is None:
            await answer(site, entrance)
            await asked.answered()
            assert counted(site) == []
        else:
            outcome = await asked.outcome()
            await site.settle()
            [(message, logged, detail)] = written(caplog)
            assert (message, logged) == ("stream refused", reason)
            assert counted(site) == [(entrance.label, reason.word)]
            check_outcome(entrance, outcome, reason, detail)


@pytest.mark.parametrize(("then", "reason"), AFTER, ids=named)
@parametrized_by_entrance
async def test_something_happens_behind_the_beginning_of_the_answer(
    entrance: Entrance,
    then: State,
    reason: Reason,
    mock_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_site(mock_clock, tmp_path, attaches=True) as site:
        asked = await entrance.ask(site)
        await answer(site, entrance)
        await asked.answered()
        await then(site)
        assert await asked.outcome() == Outcome(), "what is cut short must not look whole"
        await site.settle()
        [(message, logged, _)] = written(caplog)
        assert (message, logged) == ("stream closed", reason)
        assert counted(site) == [(entrance.label, reason.word)]


@pytest.mark.parametrize("answered", [False, True], ids=["during the dial", "behind the answer"])
@parametrized_by_entrance
async def test_a_broken_connection_of_the_user_has_the_users_reason(
    entrance: Entrance,
    answered: bool,
    mock_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_site(mock_clock, tmp_path, attaches=True) as site:
        asked = await entrance.ask(site)
        if answered:
            await answer(site, entrance)
            await asked.answered()
        closes_hard(asked.socket)
        await site.pass_seconds(2)
        if entrance.ends_input or entrance is UNIX:  # one half is over; the rest shows by writing
            with contextlib.suppress(trio.BrokenResourceError):
                await site.arrived[0].send_all(b"more")
            await site.pass_seconds(2)
        [(_, logged, _)] = written(caplog)
        assert logged is Reason.USER_LEFT
        assert counted(site) == [(entrance.label, "user_left")]


@pytest.mark.parametrize("answered", [False, True], ids=["during the dial", "behind the answer"])
@pytest.mark.parametrize("entrance", [TLS], ids=named)
async def test_a_user_whose_certificate_is_revoked(
    entrance: Entrance,
    answered: bool,
    mock_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_site(mock_clock, tmp_path, attaches=True) as site:
        asked = await entrance.ask(site)
        if answered:
            await answer(site, entrance)
            await asked.answered()
        await user_revoked(site)
        outcome = await asked.outcome()
        await site.settle()
        [(_, logged, detail)] = written(caplog)
        assert logged is Reason.REVOKED
        assert counted(site) == [("connect", "revoked")]
        if answered:
            assert outcome == Outcome()
        else:
            check_outcome(entrance, outcome, Reason.REVOKED, detail)


@pytest.mark.parametrize("answered", [False, True], ids=["during the dial", "behind the answer"])
@parametrized_by_entrance
async def test_the_server_is_cancelled(
    entrance: Entrance,
    answered: bool,
    mock_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As at the end of a drain. The agent receives the true reason too."""
    caplog.set_level(logging.INFO)
    async with open_site(mock_clock, tmp_path, attaches=True) as site:
        async with trio.open_nursery() as users:
            behind, site.nursery = site.nursery, users
            asked = await entrance.ask(site)
            if answered:
                await answer(site, entrance)
                await asked.answered()
            users.cancel_scope.cancel()
        site.nursery = behind
        await site.settle()
        assert await asked.outcome() == Outcome()
        [(_, logged, _)] = written(caplog)
        assert logged is Reason.SERVER_STOPPING
        assert counted(site) == [(entrance.label, "server_stopping")]
        assert site.arrived[0].ended_by is Reason.SERVER_STOPPING


# The client's view.


@dataclass
class SiteDialer:
    """Dials as ``TlsDialer`` does, without the resolver's thread, which the test could not wait for."""

    site: Site
    name: str = "the server"

    async def dial(self) -> SocketTlsStream:
        return await _connect_tls(self.site)


async def _tunnel(site: Site, outcome: list[Refused]) -> None:
    try:
        async with open_tunnel(SiteDialer(site), TunnelRequest.parse(NODE, "22")):
            await trio.sleep_forever()
    except Refused as refused:
        outcome.append(refused)


@pytest.mark.parametrize(
    ("before", "then", "reason"),
    [
        *((before, then, reason) for before, then, reason in BEFORE if reason is not None),
        *((nothing, then, reason) for then, reason in DURING if reason is not None),
    ],
    ids=named,
)
async def test_qanat_prints_the_servers_message(
    before: State,
    then: State,
    reason: Reason,
    mock_clock: MockClock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_site(mock_clock, tmp_path, attaches=True) as site:
        await before(site)
        outcome: list[Refused] = []
        site.nursery.start_soon(functools.partial(_tunnel, site, outcome))
        await site.settle()
        await then(site)
        await site.settle()
        [(_, logged, detail)] = written(caplog)
        assert [(refused.reason, refused.detail) for refused in outcome] == [(reason, detail)]
        assert logged is reason
