"""Messages over real sockets and TLS: in pieces, and straight into their memory."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trio

from tests.core.http2.test_call import CALL, PATH, data, message
from tests.core.streams.test_tls import self_signed
from tunnel_core.http2.call import Http2Call
from tunnel_core.http2.receiving import receive_once
from tunnel_core.limits import KIB, MIB
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import SocketTlsStream

SIZES = (5, 100 * KIB, 199 * KIB, 0, 7, 300 * KIB, 300 * KIB, 40 * KIB, 9, 300 * KIB)


async def connect(folder: Path) -> tuple[SocketTlsStream, SocketTlsStream]:
    path = self_signed(folder / "both.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    near, far = map(SocketStream, socket.socketpair())
    server = SocketTlsStream(near, context, server_side=True)
    client = SocketTlsStream(far, ssl.create_default_context(cafile=str(path)), server_hostname="localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    return server, client


@pytest.mark.parametrize("frame_bytes", [1000, 50_000, 16 * MIB])
async def test_messages_arrive_whole_whatever_their_frames(tmp_path: Path, frame_bytes: int) -> None:
    server, client = await connect(tmp_path)
    sent = [bytes([number + 1]) * size for number, size in enumerate(SIZES)]
    stream = b"".join(map(message, sent))
    wire = CALL + b"".join(data(stream[at : at + frame_bytes]) for at in range(0, len(stream), frame_bytes))
    call, got, lent, count = Http2Call(PATH, 4 * MIB, 0.0), [], 0, 0

    async def send() -> None:
        await client.send_all(wire)
        await client.send_eof()

    async with server, client, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while True:
            space = call.space()
            length, messages = receive_once(server, call, 64 * KIB, 0.0)
            if length is None:
                await server.wait_readable()
                continue
            if not length:
                break
            got += messages
            count += length
            lent += length if space is not None else 0
    assert got == sent
    assert count == len(wire)
    assert (lent > 500 * KIB) == (frame_bytes == 16 * MIB)
