"""An opener over fake links, and the targets that tests put behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import trio

from certs.x509 import Description, describe
from tests.support.fakes.credentials import credential_watch
from tests.support.fakes.fake_session import Agent, FakeSession, FarEnd
from tests.support.fakes.granting import everything_granted
from tests.support.net.dialling import dial
from tests.support.pki import authority as pki
from tunnel_core.config.types import Log
from tunnel_core.http.declining import Decline
from tunnel_core.http.router import Section
from tunnel_core.http.server import HeadLimits
from tunnel_core.telemetry.counters import Counters
from tunnel_core.wire.frames import Service
from tunnel_server.access.access import Access
from tunnel_server.access.opener import Opener
from tunnel_server.accounting.refusal_audit import Refusals, record_withdrawn
from tunnel_server.accounting.stream_audit import StreamAudit
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.api.resources import ApiEntrance
from tunnel_server.api.server_facts import ServerFacts
from tunnel_server.auth.access_rules import AccessRules
from tunnel_server.auth.callers import Caller
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.identify import Identify
from tunnel_server.auth.revocation_list import RevocationList
from tunnel_server.entrances.connect import ConnectEntrance
from tunnel_server.entrances.https import HttpsEntrance
from tunnel_server.entrances.web.entrance import WebEntrance
from tunnel_server.entrances.web.login import LoopbackLogin
from tunnel_server.events.event_log import Events
from tunnel_server.events.subscribers import EventSubscribers
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import Handler, Listener, listen_tcp
from tunnel_server.listeners.user_connections import UserConnections
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.store import Store
from tunnel_server.store.stream_log import StreamRecord

TRUST_DOMAIN = "test.internal"


def recording(written: list[StreamRecord]) -> StreamAudit:
    """Return a recorder that writes to a list."""

    async def add(records: Sequence[StreamRecord]) -> None:
        written.extend(records)

    return StreamAudit(add, lambda count: None, {}, now)


def now() -> datetime:
    return datetime.now(UTC)


class _EmptyStore:
    is_failing = False
    audit_dropped = 0

    async def newest_certificate(self, name: str) -> None:
        return None

    async def ending_certificates(self) -> list[dict[str, Any]]:
        return []


def empty_store() -> Store:
    """A store that knows no certificate, as far as the API asks it."""
    return cast(Store, _EmptyStore())


def describe_server() -> Description:
    return describe(pki.server_leaf().credential.certificate_pem)


@dataclass
class Edge:
    """The parts of a server that the entrances under test need."""

    nursery: trio.Nursery
    nodes: Nodes
    counters: Counters
    records: StreamRecorder
    opener: Opener
    subscribers: EventSubscribers
    watch: CredentialWatch
    rules: AccessRules
    """The accounts and grants; at first one grant of everything to every user."""
    audit: list[AuditLine]
    """The audit lines that the entrances wrote about refused connections and requests."""
    stream_audit: StreamAudit
    streams: list[StreamRecord]
    """The records of streams that ``stream_audit.flush`` has written."""
    dialled: list[trio.SocketStream] = field(default_factory=list)

    def attach(self, name: str, agent: Agent, *services: Service) -> FakeSession:
        session = FakeSession(self.nursery, name, agent, services)
        self.nodes.attach(name, session)
        return session

    def https_entrance(
        self,
        identify: Identify,
        *sections: Section[Caller],
        entrance: str = "https",
        users: UserConnections | None = None,
    ) -> HttpsEntrance:
        """Return the listener's part that identifies users and routes requests."""
        return HttpsEntrance(
            entrance,
            sections,
            identify=identify,
            credential_watch=self.watch,
            records=self.records,
            limits=HeadLimits(),
            users=users,
        )

    def connect(self) -> Section[Caller]:
        return ConnectEntrance(self.opener).section()

    def api(self, facts: ServerFacts | None = None, wall: Callable[[], datetime] = now) -> Section[Caller]:
        """The API over a store without certificates, unless ``facts`` has another one."""
        facts = facts or ServerFacts(
            now(), dict, describe_server, self.watch.live_certificates, empty_store()
        )
        entrance = ApiEntrance(
            self.nodes,
            self.subscribers,
            facts,
            self.watch,
            self.opener.access,
            monotonic=trio.current_time,
            wall=wall,
        )
        return entrance.section()

    def web(self, domain: str = "localhost", **changes: Any) -> WebEntrance:
        """The entrance for browsers, which takes each program of this machine for a user."""
        given = {"login": LoopbackLogin(self.opener.trust_domain), **changes}
        return WebEntrance(self.opener, domain, given.pop("limits", HeadLimits()), **given)

    async def listen(
        self,
        entrance: str,
        handler: Handler,
        admission: Admission | None = None,
        decline: Decline | None = None,
    ) -> Listener:
        """Return a listener on a free port of 127.0.0.1 that serves already."""
        admission = admission or Admission(1000, 1000, clock=trio.current_time)
        listener = await listen_tcp(entrance, ["127.0.0.1:0"], admission, self.records, decline)
        await self.nursery.start(listener.serve, handler)
        return listener

    async def dial(self, listener: Listener) -> trio.SocketStream:
        """Return a connection to ``listener``. The edge closes it at its end at the latest."""
        host, port = listener.addresses[0].rsplit(":", 1)
        self.dialled.append(await dial(host, int(port)))
        return self.dialled[-1]


@asynccontextmanager
async def open_edge(
    revoked: RevocationList | None = None,
    clock: Callable[[], float] = trio.current_time,
    seconds: float = 20,
) -> AsyncIterator[Edge]:
    """Yield an edge whose credential watch uses ``revoked``. Refusal log lines are limited by ``clock``.

    Raises ``trio.TooSlowError`` after ``seconds``.
    """
    revoked = revoked or RevocationList()
    nodes, counters = Nodes(trio.current_time, now, revoked.covers_node), Counters()
    audit = list[AuditLine]()
    streams = list[StreamRecord]()
    stream_audit = recording(streams)
    refusals = Refusals(audit.append, trio.current_time)
    records = StreamRecorder(counters, Log(), clock, refusals, stream_audit)
    watch = credential_watch(revoked)
    rules = everything_granted()
    access = Access(rules, trust_domain=TRUST_DOMAIN, on_ended=partial(record_withdrawn, audit.append))
    opener = Opener(nodes, records, trust_domain=TRUST_DOMAIN, access=access, credential_watch=watch)
    subscribers = EventSubscribers(Events(now), counters)
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            parts = nursery, nodes, counters, records, opener, subscribers, watch, rules
            edge = Edge(*parts, audit, stream_audit, streams)
            try:
                yield edge
            finally:
                for stream in edge.dialled:
                    stream.socket.close()
            nursery.cancel_scope.cancel()


async def receive_until(stream: trio.abc.ReceiveStream, marker: bytes) -> bytes:
    """Receive up to and with ``marker``; further bytes may be included."""
    data = b""
    while marker not in data:
        chunk = await stream.receive_some()
        assert chunk, f"the stream ended after {data!r}"
        data += chunk
    return data


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while chunk := await stream.receive_some():
        data += chunk
    return data


async def echo(far: FarEnd) -> None:
    """Accept the open, send back every byte, and end when the user ends."""
    far.accept()
    async for chunk in far.stream:
        await far.stream.send_all(chunk)
    await far.stream.send_eof()


def refuse_with(reason: object, detail: str) -> Agent:
    async def agent(far: FarEnd) -> None:
        far.refuse(reason, detail)

    return agent


def answer_with(*chunks: bytes, seen: list[bytes] | None = None, until: bytes = b"\r\n\r\n") -> Agent:
    """Return a target that reads a request up to ``until``, sends ``chunks`` and ends."""

    async def agent(far: FarEnd) -> None:
        far.accept()
        request = await receive_until(far.stream, until)
        if seen is not None:
            seen.append(request)
        for chunk in chunks:
            await far.stream.send_all(chunk)
        await far.stream.send_eof()

    return agent


async def never(far: FarEnd) -> None:
    """Leave the open unanswered until the user resets it."""
    await far.near.was_reset.wait()
