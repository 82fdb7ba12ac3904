"""One stream to each of many nodes, with an echo at all times. A stream that breaks or stops is detected."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tests.support.processes.programs import Server
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until

_EVERY_SECONDS = 0.5
_STILL_SECONDS = 20.0


class Pulses:
    """``slowest`` is the longest that one echo took, in seconds; ``echoes`` how many came back."""

    def __init__(self, server: Server, nodes: Sequence[str]) -> None:
        self.slowest = 0.0
        self.echoes = 0
        self._server = server
        self._nodes = nodes
        self._streams: dict[str, socket.socket] = {}
        self._broken: list[str] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def beating(self) -> Iterator[Pulses]:
        """Check that until the end of the block no echo breaks or stops for long."""
        self.open()
        try:
            yield self
            self.check()
        finally:
            self.close()

    def open(self) -> None:
        """Streams to all nodes, as soon as each is there."""
        for node in self._nodes:
            self._streams[node] = wait_until(
                lambda node=node: self._opened(node), f"a stream to {node}", deadline_seconds=60
            )
        self._broken.clear()
        self._stopped.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the failures so far."""
        assert not self._broken, self._broken[:10]

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STILL_SECONDS * 2)
            self._thread = None
        while self._streams:
            self._streams.popitem()[1].close()

    def _opened(self, node: str) -> socket.socket | None:
        answer = self._server.connect(f"{node}:{ECHO}", timeout_seconds=_STILL_SECONDS)
        if answer.status == 200 and answer.echoes(b"."):
            return answer.socket
        answer.socket.close()
        return None

    def _beat(self) -> None:
        while not self._stopped.wait(_EVERY_SECONDS):
            began = time.monotonic()
            for node in list(self._streams):
                self._guarded(node, lambda stream: stream.sendall(b"."))
            for node in list(self._streams):
                self._guarded(node, _require_echo)
                self.echoes += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _guarded(self, node: str, do: Callable[[socket.socket], None]) -> None:
        try:
            do(self._streams[node])
        except OSError as error:
            self._broken.append(f"{node}: {error!r}")
            self._streams.pop(node).close()


def _require_echo(stream: socket.socket) -> None:
    if stream.recv(1) != b".":  # the time-out of its opening holds for each read
        raise ConnectionError("the stream ended")
