"""Echoes of 64 bytes at fixed times, as a program: ``python -m tests.e2e.attacks.pulse REQUEST``.

REQUEST is a JSON object: ``unix`` or ``address``, ``trust`` and ``identity`` decide where to send the CONNECT
for ``authority`` with ``headers``. Each line on standard input is answered with a line of JSON: the times and
failures of the echoes since the line before.

The time of an echo counts from when the echo was due, not from when it was sent, because a server that stops
for a second delays a hundred echoes. An echo that does not return in time is a failure, as is a broken
stream. The next echo then uses a new stream.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.net import clients

INTERVAL_SECONDS = 0.01
TIMEOUT_SECONDS = 10.0
_BYTES = b"x" * 64


class Pulse:
    """The stream, and the times of the echoes since the last report."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._stream: clients.Answer | None = None
        self._seconds: list[float] = []
        self._failures: list[str] = []

    def beat(self, due: float) -> None:
        """Run one echo, due at ``due``. It makes a new stream if there is none."""
        try:
            if self._stream is None:
                self._stream = self._open()
            if not self._stream.echoes(_BYTES):
                raise ConnectionError("the stream ended")
        except OSError as error:
            self._failures.append(str(error))
            if self._stream is not None:
                self._stream.socket.close()
                self._stream = None
        self._seconds.append(time.monotonic() - due)

    def report(self) -> dict[str, Any]:
        """Return the sorted times in seconds and the failures, and reset both."""
        report = {"seconds": sorted(self._seconds), "failures": self._failures}
        self._seconds, self._failures = [], []
        return report

    def _open(self) -> clients.Answer:
        answer = clients.connect(self._dial(), self._request["authority"], *self._request["headers"])
        if answer.status != 200:
            answer.socket.close()
            raise ConnectionError(f"{answer.status} {answer.phrase}")
        return answer

    def _dial(self) -> Any:
        if "unix" in self._request:
            return clients.dial_unix(Path(self._request["unix"]), timeout_seconds=TIMEOUT_SECONDS)
        host, port = self._request["address"]
        return clients.dial_tls(
            (host, port),
            trust=Path(self._request["trust"]),
            identity=Path(self._request["identity"]),
            timeout_seconds=TIMEOUT_SECONDS,
        )


def main(request: str) -> None:
    pulse = Pulse(json.loads(request))
    due = time.monotonic()
    while True:
        pulse.beat(due)
        due += INTERVAL_SECONDS
        while select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            if not sys.stdin.buffer.raw.read(1):  # type: ignore[attr-defined]
                return
            sys.stdout.write(json.dumps(pulse.report()) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
