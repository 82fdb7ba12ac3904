"""Floods of TLS records: each step handles few, and a peer that sends only such records is reset."""

from __future__ import annotations

import ctypes
import ctypes.util
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.core.streams.test_tls import self_signed
from tunnel_core.streams import tls_records
from tunnel_core.streams.tls import TlsStream
from tunnel_core.streams.tls_errors import RecordFlood
from tunnel_core.streams.tls_records import MAX_RECORDS, RecordMeter

_SSL_OF_OBJECT = 24
"""Where CPython's ``_ssl._SSLSocket`` has its ``SSL *``: behind the head of the object, and one pointer."""


@given(
    sizes=st.lists(st.integers(0, 300), max_size=100),
    cuts=st.lists(st.integers(1, 2000), min_size=1, max_size=20),
)
def test_pieces_of_any_size_leave_in_few_records(sizes: list[int], cuts: list[int]) -> None:
    wire = b"".join(b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size) for size in sizes)
    meter, out, at, count = RecordMeter(), b"", 0, 0
    while at < len(wire):
        cut = cuts[count % len(cuts)]
        meter.put(wire[at : at + cut])
        at, count = at + cut, count + 1
        while meter.has_more:
            piece = bytes(meter.take())
            assert piece
            assert len(piece) <= MAX_RECORDS * (300 + 5) + 305
            out += piece
    assert out == wire
    assert meter.whole_records == len(sizes)
    most = tls_records.MAX_EMPTY_RECORDS
    assert (meter.empty_records > most) == (len(sizes) > most)


def test_a_piece_has_few_records() -> None:
    meter = RecordMeter()
    meter.put(b"\x17\x03\x03\0\1a" * 100)
    assert [len(meter.take()) // 6 for _ in range(4)] == [32, 32, 32, 4]
    assert not meter.has_more


class Peer:
    """A client whose records are made here. Python itself cannot ask for a key update."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    async def shake_hands(self, transport: trio.abc.Stream) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await transport.send_all(self._out.read())
                self._in.write(await transport.receive_some())
            else:
                await transport.send_all(self._out.read())
                return

    def key_updates(self, count: int) -> bytes:
        library = ctypes.CDLL(ctypes.util.find_library("ssl"))
        pointer = ctypes.c_void_p.from_address(id(self.tls._sslobj) + _SSL_OF_OBJECT)  # type: ignore[attr-defined]
        for _ in range(count):
            assert library.SSL_key_update(pointer, 1) == 1
            assert library.SSL_do_handshake(pointer) == 1
        return self._out.read()

    def records(self, *pieces: bytes) -> bytes:
        for piece in pieces:
            self.tls.write(piece)
        return self._out.read()


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    path = self_signed(tmp_path / "both.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    server.num_tickets = 0
    return server, ssl.create_default_context(cafile=str(path))


async def connect(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> tuple[TlsStream, Peer, trio.abc.Stream]:
    near, far = trio.testing.memory_stream_pair()
    stream, peer = TlsStream(near, contexts[0], server_side=True), Peer(contexts[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.do_handshake)
        nursery.start_soon(peer.shake_hands, far)
    return stream, peer, far


async def test_one_step_handles_few_records_and_loses_none(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    stream, peer, far = await connect(contexts)
    await far.send_all(peer.records(*[b"x"] * 1000))
    pieces = [await stream.receive_some() for _ in range(1000 // MAX_RECORDS)]
    assert max(map(len, pieces)) <= MAX_RECORDS
    while sum(map(len, pieces)) < 1000:
        pieces.append(await stream.receive_some())


@pytest.mark.skipif("libssl" not in Path("/proc/self/maps").read_text(), reason="OpenSSL is linked in")
class TestKeyUpdates:
    async def test_a_few_are_answered(self, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
        stream, peer, far = await connect(contexts)
        await far.send_all(peer.key_updates(10) + peer.records(b"data"))
        assert await stream.receive_some() == b"data"

    async def test_a_flood_is_cut(self, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
        stream, peer, far = await connect(contexts)
        await far.send_all(peer.key_updates(500) + peer.records(b"data"))
        with pytest.raises(RecordFlood):
            await stream.receive_some()

    async def test_answers_that_nothing_follows_are_bounded(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
    ) -> None:
        stream, peer, far = await connect(contexts)
        with pytest.raises(RecordFlood):
            for _ in range(100):
                await far.send_all(peer.key_updates(20) + peer.records(b"x"))
                await stream.receive_some()
