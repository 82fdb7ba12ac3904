"""Endless echoes, one after the other: ``python -m tests.e2e.identity.pulse SOCKET AUTHORITY``.

Each line on standard input is answered with a line of JSON: the results of the echoes since the last line.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path

from tests.support.net import clients

_BYTES, _PAUSE_SECONDS = 64, 0.005


def main(path: str, authority: str) -> None:
    answer = clients.connect(clients.dial_unix(Path(path)), authority)
    assert answer.status == 200, answer.phrase
    took: list[float] = []
    while True:
        began = time.perf_counter()
        assert answer.echoes(b"x" * _BYTES)
        took.append(time.perf_counter() - began)
        if select.select([sys.stdin], [], [], _PAUSE_SECONDS)[0]:
            if not sys.stdin.readline():
                return
            took.sort()
            report = {"p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100], "count": len(took)}
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()
            took = []


if __name__ == "__main__":
    main(*sys.argv[1:])
