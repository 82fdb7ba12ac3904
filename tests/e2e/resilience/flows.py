"""Streams in threads during faults of the link: what each moved, when, and whether it was right.

All three end at ``finish``, which raises the first fault. Progress counts bytes that arrived at the far
end, not bytes in a sender's buffer.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from tests.support.net import clients, content
from tests.support.processes.site import ECHO, SOURCE, Site
from tests.support.processes.waiting import wait_until

_ECHO_BYTES = 64
_PATIENCE_SECONDS = 150.0
"""Longer than the grace, so that the product decides when a stream ends."""


class Flow:
    """One stream. ``arrivals`` has a time for each piece that arrived, ``moved`` is their bytes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.moved = 0
        self.arrivals: list[float] = []
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def run(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def arrived_after(self, moment: float) -> float | None:
        """Seconds from ``moment`` to the first arrival after it."""
        return next((at - moment for at in list(self.arrivals) if at > moment), None)

    def wait_arrival(self, moment: float, *, deadline_seconds: float) -> float:
        """As ``arrived_after``, once there is one. Fails at once if the stream has failed."""

        def arrived() -> float | None:
            if self.failure is not None:
                raise AssertionError(f"{self.name} failed: {self.failure!r}")
            return self.arrived_after(moment)

        return wait_until(arrived, f"{self.name} to go on", deadline_seconds=deadline_seconds)

    def finish(self, deadline_seconds: float) -> None:
        """Waits for its end."""
        self._thread.join(deadline_seconds)
        assert not self._thread.is_alive(), f"{self.name} has not ended; {len(self.arrivals)} pieces arrived"
        if self.failure is not None:
            raise AssertionError(f"{self.name} failed") from self.failure

    def _guarded(self) -> None:
        try:
            self.run()
        except BaseException as error:  # raised by the caller that waits for the thread
            self.failure = error

    def _note_arrival(self, length: int) -> None:
        self.arrivals.append(time.monotonic())
        self.moved += length


def _open(site: Site, port: int) -> socket.socket:
    answer = site.connect(port, timeout_seconds=_PATIENCE_SECONDS)
    assert answer.status == 200, f"{answer.status} {answer.phrase}"
    return answer.socket


class Download(Flow):
    """From the edge to the user; the content is verified."""

    def __init__(self, site: Site, total: int) -> None:
        super().__init__("download")
        self._total = total
        self._sock = _open(site, SOURCE)

    def run(self) -> None:
        digest, left = hashlib.sha256(), self._total
        self._sock.sendall(content.COUNT.pack(self._total))
        while data := self._sock.recv(1 << 20):
            self._note_arrival(len(data))
            digest.update(data)
            left -= len(data)
        assert not left, f"ended {left} bytes before its end"
        assert digest.hexdigest() == content.digest_of(self._total)

    def close(self) -> None:
        self._sock.close()


class Upload(Flow):
    """From the user to a target in this process, which notes what arrives and answers with its hash."""

    def __init__(self, site: Site, total: int) -> None:
        super().__init__("upload")
        self._total = total
        with site.agent.namespace.entered():
            self._listener = socket.create_server((site.network.loopback, 0))
        self._target = threading.Thread(target=self._receive, daemon=True)
        self._target.start()
        self._sock = _open(site, self._listener.getsockname()[1])

    def run(self) -> None:
        for block in content.blocks(self._total):
            self._sock.sendall(block)
        self._sock.shutdown(socket.SHUT_WR)
        answer = clients.receive_exactly(self._sock, content.DIGEST_BYTES)
        assert answer.decode() == content.digest_of(self._total)
        assert not self._sock.recv(1), "more than the answer came"

    def close(self) -> None:
        self._sock.close()
        self._listener.close()

    def _receive(self) -> None:
        digest = hashlib.sha256()
        with contextlib.suppress(OSError):  # the user learns it from its own end of the stream
            end, _ = self._listener.accept()
            with end:
                while data := end.recv(1 << 20):
                    self._note_arrival(len(data))
                    digest.update(data)
                end.sendall(digest.hexdigest().encode())


class Echo(Flow):
    """64 random bytes there and back, then a pause, until ``finish``."""

    def __init__(self, site: Site, pause_seconds: float = 0.1) -> None:
        super().__init__("echo")
        self._pause_seconds = pause_seconds
        self._sock = _open(site, ECHO)
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(self._pause_seconds):
            sent = secrets.token_bytes(_ECHO_BYTES)
            self._sock.sendall(sent)
            assert clients.receive_exactly(self._sock, _ECHO_BYTES) == sent
            self._note_arrival(_ECHO_BYTES)
        self._sock.shutdown(socket.SHUT_WR)
        assert not self._sock.recv(1)

    def finish(self, deadline_seconds: float) -> None:
        self._enough.set()
        super().finish(deadline_seconds)

    def close(self) -> None:
        self._sock.close()


@contextlib.contextmanager
def running(*flows: Flow) -> Iterator[tuple[Flow, ...]]:
    """Starts them and waits until each has moved something; closes them at the end."""
    start = time.monotonic()
    try:
        for flow in flows:
            flow.start()
        for flow in flows:
            flow.wait_arrival(start, deadline_seconds=10)
        yield flows
    finally:
        for flow in flows:
            flow.close()
