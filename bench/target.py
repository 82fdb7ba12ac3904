"""Targets behind every system, as one process: `echo`, `source`, `sink` and `page` on loopback ports.

The process is one epoll loop of plain non-blocking sockets, so that a target costs a few microseconds an
event and nothing for each stream. The roles:

* echo: the target sends every byte back.
* source: the client sends a big-endian count of 8 bytes; the target sends so many bytes (`sendfile`), then
  ends.
* sink: the target discards all bytes; after the client's end it sends their count as 8 bytes.
* page: the target answers each HTTP request without a body with a small page, and keeps the connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys

COUNT = struct.Struct("!Q")
ROLES = ("echo", "source", "sink", "page")
PAGE_END = b"</body></html>\n"
_PAGE = b"<html><body>" + b"q" * (512 - 12 - len(PAGE_END)) + PAGE_END
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(_PAGE), _PAGE)
_BLOCK = 1 << 20
_TURN_BYTES = 4 << 20
"""Bytes that one connection may move before the loop serves the others."""


class Connection:
    """One accepted connection. `step` moves data and returns the events to wait for, or 0 to close."""

    def __init__(self, sock: socket.socket, role: str, block: int) -> None:
        self.sock = sock
        self.block = block
        self.step = {
            "echo": self._echo,
            "source": self._read_count,
            "sink": self._sink,
            "page": self._page,
        }[role]
        self.events = select.EPOLLIN
        self.buffer = bytearray(_BLOCK) if role == "sink" else bytearray()
        self.pending = b""
        self.count = 0

    def _echo(self) -> int:
        if not self.pending:
            self.pending = self.sock.recv(65536)
            if not self.pending:
                return 0
        self.pending = self.pending[self.sock.send(self.pending) :]
        return select.EPOLLOUT if self.pending else select.EPOLLIN

    def _read_count(self) -> int:
        data = self.sock.recv(COUNT.size - len(self.pending))
        self.pending += data
        if not data:
            return 0
        if len(self.pending) < COUNT.size:
            return select.EPOLLIN
        self.count = COUNT.unpack(self.pending)[0]
        self.step = self._source
        return select.EPOLLOUT

    def _source(self) -> int:
        turn = min(self.count, _TURN_BYTES)
        while turn > 0:
            sent = os.sendfile(self.sock.fileno(), self.block, 0, min(turn, _BLOCK))
            turn -= sent
            self.count -= sent
        if self.count:
            return select.EPOLLOUT
        self.sock.shutdown(socket.SHUT_WR)
        self.step = self._drain
        return select.EPOLLIN

    def _drain(self) -> int:
        return select.EPOLLIN if self.sock.recv(65536) else 0

    def _sink(self) -> int:
        received = self.sock.recv_into(self.buffer)
        self.count += received
        if received:
            return select.EPOLLIN
        self.sock.sendall(COUNT.pack(self.count))
        return 0

    def _page(self) -> int:
        received = self.sock.recv(65536)
        self.pending += received
        *requests, self.pending = self.pending.split(b"\r\n\r\n")
        self.sock.sendall(_ANSWER * len(requests))
        is_last = not received or any(b"connection: close" in request.lower() for request in requests)
        return 0 if is_last else select.EPOLLIN


class Target:
    """Listeners of all roles in one epoll loop. `ports` has their ports by role."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, str]] = {}
        self._connections: dict[int, Connection] = {}
        self._block = os.memfd_create("block")
        os.truncate(self._block, _BLOCK)
        self.ports = {role: self._listen(host, role) for role in ROLES}

    def _listen(self, host: str, role: str) -> int:
        listener = socket.create_server((host, 0), backlog=4096)
        listener.setblocking(False)
        self._listeners[listener.fileno()] = (listener, role)
        self._poll.register(listener, select.EPOLLIN)
        return int(listener.getsockname()[1])

    def run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._listeners:
                    self._accept(*self._listeners[descriptor])
                else:
                    self._serve(descriptor)

    def _accept(self, listener: socket.socket, role: str) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[sock.fileno()] = Connection(sock, role, self._block)
                self._poll.register(sock, select.EPOLLIN)

    def _serve(self, descriptor: int) -> None:
        connection = self._connections[descriptor]
        try:
            events = connection.step()
        except BlockingIOError:
            return
        except OSError:
            events = 0
        if not events:
            self._poll.unregister(descriptor)
            self._connections.pop(descriptor).sock.close()
        elif events != connection.events:
            connection.events = events
            self._poll.modify(descriptor, events)


def main() -> None:
    target = Target()
    sys.stdout.write(json.dumps(target.ports) + "\n")
    sys.stdout.flush()
    target.run()


if __name__ == "__main__":
    main()
