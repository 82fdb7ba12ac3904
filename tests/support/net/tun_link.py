"""A slow link between two network namespaces: ``python -m tests.support.net.tun_link FIRST SECOND``.

Each argument is NAMESPACE:INTERFACE. The program makes both TUN interfaces and moves packets between
them: ``down`` leads from the first to the second, ``up`` back. Commands are JSON lines on the standard
input, and each gets one line as its answer. The program ends with its input:

    {"do": "set", "down": {"rate": 250000, "delay_seconds": 0.025, "queue_seconds": 0.05}}
    {"do": "cut", "seconds": 10}    (or without an end), {"do": "restore"}, {"do": "counters"}

A rate, a delay or a queue that a direction's table omits has no limit. Times are CLOCK_MONOTONIC's.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.net.direction import Direction
from tests.support.net.namespaces import Namespace
from tests.support.net.tun import Tun

_OFFLOAD_FROM = 12_500_000
"""Bytes per second at which a frame of 64 KiB takes 5 ms. Below it, packets are queued and dropped singly."""

_NICENESS = -15


class Link:
    """Two interfaces, two directions, and the time at which a cut ends."""

    def __init__(self, first: Tun, second: Tun) -> None:
        self.directions = {"down": Direction(), "up": Direction()}
        self._ways = [(first, self.directions["down"], second), (second, self.directions["up"], first)]
        self._inputs = dict(zip(self.directions, (first, second), strict=True))
        self._restore_at: float | None = None
        for tun in (first, second):
            tun.set_offload(True)

    def run(self, control: int) -> None:
        """Move packets until ``control`` ends."""
        commands = b""
        while True:
            readable, _, _ = select.select([control, *self._inputs.values()], [], [], self._patience())
            self._move()
            if control in readable:
                data = os.read(control, 65536)
                if not data:
                    return
                *lines, commands = (commands + data).split(b"\n")
                for line in lines:
                    sys.stdout.write(json.dumps(self._obey(json.loads(line))) + "\n")
                    sys.stdout.flush()

    def _move(self) -> None:
        now = time.monotonic()
        if self._restore_at is not None and now >= self._restore_at:
            self._restore()
        for source, direction, sink in self._ways:
            for frame in source.read_batch():
                direction.offer(frame, now)
            for frame in direction.due(now):
                sink.write(frame)

    def _patience(self) -> float | None:
        times = [due for direction in self.directions.values() if (due := direction.next_due()) is not None]
        if self._restore_at is not None:
            times.append(self._restore_at)
        # select, because Python's epoll counts in milliseconds.
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        match command.pop("do"):
            case "set":
                for name, terms in command.items():
                    self._set(name, **terms)
            case "cut":
                return self._cut(**command)
            case "restore":
                self._restore()
            case "counters":
                return {name: asdict(direction.counters) for name, direction in self.directions.items()}
            case unknown:
                return {"error": f"no command {unknown}"}
        return {}

    def _set(
        self,
        name: str,
        rate: float | None = None,
        delay_seconds: float = 0.0,
        queue_seconds: float | None = None,
    ) -> None:
        limit = int(rate * queue_seconds) if rate and queue_seconds is not None else None
        self.directions[name].set(time.monotonic(), rate, delay_seconds, limit)
        self._inputs[name].set_offload(rate is None or rate >= _OFFLOAD_FROM)

    def _cut(self, seconds: float | None = None) -> dict[str, Any]:
        for direction in self.directions.values():
            direction.cut()
        self._restore_at = time.monotonic() + seconds if seconds is not None else None
        return {"until": self._restore_at}

    def _restore(self) -> None:
        self._restore_at = None
        for direction in self.directions.values():
            direction.restore()


def _open(place: str) -> Tun:
    namespace, _, interface = place.partition(":")
    return Tun(Namespace(namespace), interface)


def _raise_priority() -> None:
    """Raise this process's priority, because a link does not become slower while its users are busy."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
        # Where the kernel groups processes by session, niceness counts within one, autogroup between them.
        Path("/proc/self/autogroup").write_text(str(_NICENESS))


def main(first: str, second: str) -> None:
    gc.disable()  # nothing here makes cycles, and a collection would be a delay
    _raise_priority()
    link = Link(_open(first), _open(second))
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    link.run(sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
