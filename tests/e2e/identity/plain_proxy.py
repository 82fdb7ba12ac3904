"""An HTTP CONNECT proxy at an edge that resolves a server's name, which the machines behind it may not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.support.net.namespaces import Namespace

_SECONDS = 15.0


class PlainProxy:
    """Listens on loopback in ``edge`` and dials ``address`` for all that is asked for."""

    def __init__(self, edge: Namespace, address: str) -> None:
        self.asked: list[str] = []
        self._edge = edge
        self._address = address
        with edge.entered():
            self._listener = socket.create_server(("127.0.0.1", 0))

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            thread.join(_SECONDS)

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._edge.entered():
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._tunnel, args=(near,), daemon=True).start()

    def _tunnel(self, near: socket.socket) -> None:
        """One connection. A thread that a thread of the namespace started is in it as well."""
        with contextlib.suppress(OSError), near:
            head = near.recv(64 * 1024)
            if not head:
                return  # only the certificate is read
            authority = head.split()[1].decode()
            self.asked.append(authority)
            with socket.create_connection((self._address, int(authority.rpartition(":")[2]))) as far:
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_copy, args=(far, near), daemon=True)
                back.start()
                _copy(near, far)
                back.join(_SECONDS)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(64 * 1024):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
