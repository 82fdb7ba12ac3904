"""Users with bare sockets, so that a test controls every byte and every close."""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path

_MAX_HEAD = 64 * 1024


@dataclass
class Answer:
    """An entrance's answer to a CONNECT. ``socket`` carries the stream if the status is 200."""

    status: int
    phrase: str
    socket: socket.socket

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def echoes(self, data: bytes) -> bool:
        """Whether ``data`` comes back."""
        self.socket.sendall(data)
        return receive_exactly(self.socket, len(data)) == data

    def abort(self) -> None:
        abort(self.socket)


def dial_unix(path: Path, *, timeout_seconds: float = 20) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_seconds)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def dial_tls(
    address: tuple[str, int],
    *,
    trust: Path | None = None,
    identity: Path | None = None,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    timeout_seconds: float = 20,
    server_name: str = "",
) -> ssl.SSLSocket:
    """Connect with TLS. ``identity`` is the client's bundle; without ``trust`` nothing is verified."""
    context = ssl.create_default_context(cafile=trust)
    context.maximum_version = newest
    if trust is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity)
    raw = socket.create_connection(address, timeout=timeout_seconds)
    # Otherwise Python reports a connection that was cut as one that ended.
    return context.wrap_socket(raw, server_hostname=server_name or address[0], suppress_ragged_eofs=False)


def connect(connection: socket.socket, authority: str, *headers: str) -> Answer:
    """Send the same CONNECT as kube-apiserver, and read only the head of the answer."""
    lines = [f"CONNECT {authority} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return read_answer(connection)


def read_answer(connection: socket.socket) -> Answer:
    head = read_head(connection)
    status_line = head.split(b"\r\n", 1)[0].decode("latin-1")
    _, _, rest = status_line.partition(" ")
    status, _, phrase = rest.partition(" ")
    return Answer(int(status) if status.isdigit() else 0, phrase, connection)


def read_head(connection: socket.socket) -> bytes:
    """Read an answer's head and no further byte."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _MAX_HEAD:
        byte = connection.recv(1)
        if not byte:
            break
        head += byte
    return head


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """Receive ``count`` bytes, or fewer if the stream ends before."""
    parts = bytearray()
    while len(parts) < count and (part := connection.recv(min(count - len(parts), 1 << 20))):
        parts += part
    return bytes(parts)


def receive_all(connection: socket.socket) -> bytes:
    return receive_exactly(connection, 1 << 40)


def abort(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
