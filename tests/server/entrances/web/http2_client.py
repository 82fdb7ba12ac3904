"""A client of HTTP/2 that tests drive frame by frame, also against the protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from tests.server.entrances.web.test_login import DOMAIN, HOST, certificates_of, open_tls, serve_tls
from tests.support.fakes.edge import TRUST_DOMAIN, Edge, open_edge
from tunnel_core.http.server import HeadLimits
from tunnel_core.streams.tls import TlsStream
from tunnel_server.entrances.web.login import LoopbackLogin
from tunnel_server.listeners.listener import Listener
from tunnel_server.web_config import WebLogin

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Fields = Sequence[tuple[str | bytes, str | bytes]]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return the bytes of a frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def head(
    path: str = "/", method: str = "GET", *, host: str = HOST, more: Fields = ()
) -> list[tuple[str, str]]:
    """Return the header list of a request."""
    fields = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path), *more]
    return [(str(name), str(value)) for name, value in fields]


class Client:
    """One connection. ``events`` are those of ``h2`` so far; flow control is left to the test."""

    def __init__(self, stream: TlsStream) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []

    async def start(self) -> None:
        self.h2.initiate_connection()
        await self.send()

    async def send(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send_all(data)

    async def ask(self, fields: Fields, body: bytes | None = None, *, is_end: bool = True) -> int:
        """Send a request, and return its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, list(fields), end_stream=body is None and is_end)
        if body is not None:
            self.h2.send_data(stream_id, body, end_stream=is_end)
        await self.send()
        return stream_id

    async def receive(self) -> bool:
        """Take one read; return False at the end of the connection."""
        data = await self.stream.receive_some()
        if data:
            self.events += self.h2.receive_data(data)
            await self.send()
        return bool(data)

    async def wait(self, kind: type[h2.events.Event], stream_id: int | None = None) -> h2.events.Event:
        """Return the first event of this kind, of one stream if it is named."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                    return event
            assert await self.receive(), f"the connection ended; events: {self.events}"

    async def answer(self, stream_id: int) -> tuple[dict[str, str], bytes]:
        """Return head and body of a whole answer, and open the windows as the body arrives."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            seen = len(self.events)
            await self.send()
            if any(isinstance(e, h2.events.StreamEnded) and e.stream_id == stream_id for e in self.events):
                return self.head_of(stream_id), self.body_of(stream_id)
            reset = [
                e for e in self.events if isinstance(e, h2.events.StreamReset) and e.stream_id == stream_id
            ]
            assert not reset, f"reset: {reset}"
            assert await self.receive(), f"the connection ended; events: {self.events}"

    def head_of(self, stream_id: int) -> dict[str, str]:
        for event in self.events:
            if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream_id:
                return dict(event.headers)
        raise AssertionError("there is no head yet")

    def body_of(self, stream_id: int) -> bytes:
        kind = h2.events.DataReceived
        return b"".join(e.data for e in self.events if isinstance(e, kind) and e.stream_id == stream_id)


class Site:
    """A server with one web entrance over TLS."""

    def __init__(self, edge: Edge, listener: Listener, folder: Path) -> None:
        self.edge = edge
        self.listener = listener
        self._folder = folder

    async def open(self) -> TlsStream:
        """Return a connection that has agreed on HTTP/2."""
        stream = await open_tls(self.edge, self.listener, self._folder, alpn=("h2", "http/1.1"))
        assert stream.alpn() == "h2"
        return stream

    async def client(self) -> Client:
        client = Client(await self.open())
        await client.start()
        return client


@asynccontextmanager
async def open_site(folder: Path, limits: HeadLimits | None = None) -> AsyncIterator[Site]:
    async with open_edge() as edge:
        certificates = certificates_of(folder, WebLogin.NONE)
        login = LoopbackLogin(TRUST_DOMAIN)
        listener = await serve_tls(edge, certificates, login=login, limits=limits or HeadLimits(64 * 1024))
        yield Site(edge, listener, folder)


__all__ = ["DOMAIN", "HOST", "PREFACE", "Client", "Site", "frame", "head", "open_site"]
