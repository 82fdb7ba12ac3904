"""A revoked user loses access at once: streams, waiting answers, and kept-alive connections. Real TLS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from certs.ca import Leaf
from certs.x509 import facts_of
from tests.server.entrances.test_https import client_context, tls_files
from tests.support.fakes.credentials import credential_watch
from tests.support.fakes.edge import Edge, echo, never, open_edge, receive_until
from tests.support.fakes.fake_session import FarEnd
from tests.support.pki import authority as pki
from tunnel_core.reasons import Reason
from tunnel_core.streams.tls import TlsStream
from tunnel_server.access.opener import Opener
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.identify import identify_by_certificate
from tunnel_server.auth.revocation_list import Revocation, RevocationKind, RevocationList
from tunnel_server.listeners.listener import Listener
from tunnel_server.listeners.tls import TlsContexts, over_tls
from tunnel_server.store.audit import AuditLine

CONNECT = b"CONNECT edge1:80 HTTP/1.1\r\nHost: x\r\n\r\n"
VERSION = b"GET /api/v1/version HTTP/1.1\r\nHost: x\r\n\r\n"
FOLLOW = b"GET /api/v1/events?after=0&wait=30 HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo_until_reset(far: FarEnd) -> None:
    with contextlib.suppress(trio.ClosedResourceError):
        await echo(far)


@dataclass
class HttpsPort:
    edge: Edge
    listener: Listener
    revoked: RevocationList
    watch: CredentialWatch
    audited: list[AuditLine]
    folder: Path
    set_ahead: timedelta = timedelta()

    async def enter(self, leaf: Leaf | None = None, *, has_certificate: bool = True) -> TlsStream:
        """Return a connection, by default of user kim."""
        leaf = leaf or pki.user_leaf("kim")
        context = client_context(self.folder, leaf if has_certificate else None)
        stream = TlsStream(await self.edge.dial(self.listener), context, server_hostname="localhost")
        await stream.do_handshake()
        return stream

    async def ask(self, stream: TlsStream, request: bytes) -> bytes:
        await stream.send_all(request)
        return await receive_until(stream, b"\r\n\r\n")

    def revoke(self, kind: RevocationKind = RevocationKind.USER, subject: str = "kim") -> None:
        self.revoked.put(Revocation(1, kind, subject, 0, "uid-0", ""))

    def wall(self) -> datetime:
        return datetime.now(UTC) + self.set_ahead


@asynccontextmanager
async def open_https_port(folder: Path) -> AsyncIterator[HttpsPort]:
    async with open_edge() as edge:
        ports: list[HttpsPort] = []
        revoked, audited = RevocationList(), list[AuditLine]()
        watch = credential_watch(revoked, lambda: ports[0].wall())
        refusals = Refusals(audited.append, trio.current_time)
        log, streams = edge.records._log, edge.stream_audit
        edge.records = StreamRecorder(edge.counters, log, trio.current_time, refusals, streams)
        edge.watch = watch
        edge.opener = Opener(
            edge.nodes,
            edge.records,
            trust_domain=pki.TRUST_DOMAIN,
            access=edge.opener.access,
            credential_watch=watch,
        )
        https_entrance = edge.https_entrance(
            identify_by_certificate(pki.TRUST_DOMAIN), edge.connect(), edge.api()
        )
        handler = over_tls("https", TlsContexts(tls_files(folder)), 5.0, https_entrance.serve, edge.records)
        listener = await edge.listen("https", handler)
        ports.append(HttpsPort(edge, listener, revoked, watch, audited, folder))
        yield ports[0]


async def test_an_open_stream_is_broken_off_on_both_sides(tmp_path: Path) -> None:
    async with open_https_port(tmp_path) as https_port:
        session = https_port.edge.attach("edge1", echo_until_reset)
        stream, other = await https_port.enter(), await https_port.enter(pki.user_leaf("lee"))
        for one in (stream, other):
            assert (await https_port.ask(one, CONNECT)).startswith(b"HTTP/1.1 200 ")
            await one.send_all(b"hello")
            assert await one.receive_some() == b"hello"
        https_port.revoke()
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert session.streams[0].ended_by is Reason.REVOKED
        await other.send_all(b"still here")
        assert await other.receive_some() == b"still here"
        assert https_port.edge.counters.closed_streams == {("connect", "revoked"): 1}


async def test_an_open_that_waits_is_refused(tmp_path: Path) -> None:
    async with open_https_port(tmp_path) as https_port:
        session = https_port.edge.attach("edge1", never)
        stream = await https_port.enter()
        await stream.send_all(CONNECT)
        await session.was_opened.wait()
        https_port.revoke(RevocationKind.SERIAL, facts_of(pki.user_leaf("kim").chain_pem).serial)
        with trio.fail_after(1):
            answer = await receive_until(stream, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ") and b": revoked" in answer


async def test_a_connection_that_was_kept_alive_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with open_https_port(tmp_path) as https_port:
        stream = await https_port.enter()
        assert (await https_port.ask(stream, VERSION)).startswith(b"HTTP/1.1 200 ")
        https_port.revoke()
        answer = await https_port.ask(stream, VERSION)
        assert answer.startswith(b"HTTP/1.1 403 the certificate ") and b": revoked" in answer
        again = await https_port.ask(
            await https_port.enter(), CONNECT
        )  # a new connection does not help either
        assert b": revoked" in again
        [line] = https_port.audited
        assert (line.user, line.reason) == ("kim", "revoked")
        assert line.serial == facts_of(pki.user_leaf("kim").chain_pem).serial


async def test_an_answer_that_waits_for_events_is_cut_short(tmp_path: Path) -> None:
    async with open_https_port(tmp_path) as https_port:
        stream = await https_port.enter()
        await stream.send_all(FOLLOW)
        while not https_port.edge.subscribers._waiting:
            await trio.lowlevel.checkpoint()
        https_port.revoke()
        with trio.fail_after(1):
            answer = await receive_until(stream, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ") and b": revoked" in answer


async def test_a_stream_that_outlives_its_certificate_ends(tmp_path: Path) -> None:
    async with open_https_port(tmp_path) as https_port:
        https_port.edge.attach("edge1", echo_until_reset)
        stream, idle = await https_port.enter(), await https_port.enter()
        await https_port.ask(stream, CONNECT)
        assert (await https_port.ask(idle, VERSION)).startswith(b"HTTP/1.1 200 ")
        https_port.set_ahead = timedelta(days=366)
        https_port.edge.nursery.start_soon(https_port.watch.watch)
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert b": certificate_expired" in await https_port.ask(idle, VERSION)
