"""TCP relay that delays every byte by a fixed time in each direction: a long line without a rate limit.

`python -m bench.delay PORT SECONDS` relays to PORT and prints the port on which it listens. The relay uses
threads and blocking sockets, because `time.sleep` is exact to about 0.1 ms, but an epoll timeout to 1 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from bench.processes import module

_READ_BYTES = 256 << 10
_CHUNKS_UNDERWAY = 16384
"""Most reads that the line holds: far above bandwidth times delay here, and still a bound."""
_Line: TypeAlias = "queue.Queue[tuple[float, bytes]]"


def carry(source: socket.socket, sink: socket.socket, delay_seconds: float) -> None:
    """Start one direction in two threads. The end of the data is delayed like the data."""
    line: _Line = queue.Queue(_CHUNKS_UNDERWAY)
    threading.Thread(target=_receive, args=(source, line, delay_seconds), daemon=True).start()
    threading.Thread(target=_send, args=(line, sink), daemon=True).start()


def _receive(source: socket.socket, line: _Line, delay_seconds: float) -> None:
    data = b"?"
    while data:
        try:
            data = source.recv(_READ_BYTES)
        except OSError:
            data = b""
        line.put((time.monotonic() + delay_seconds, data))


def _send(line: _Line, sink: socket.socket) -> None:
    try:
        while True:
            due, data = line.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
    except OSError:
        return


def serve(listener: socket.socket, port: int, delay_seconds: float) -> None:
    """Relay each accepted connection to ``port`` on loopback, for ever."""
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carry(near, far, delay_seconds)
        carry(far, near, delay_seconds)


@contextlib.contextmanager
def maybe_delayed(port: int, delay_seconds: float, log: Path) -> Iterator[int]:
    """Yield the port of a relay to `port`, or `port` itself without a delay."""
    if not delay_seconds:
        yield port
        return
    with module("bench.delay", str(port), str(delay_seconds), log=log) as (_, relay_port):
        yield int(relay_port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("seconds", type=float)
    chosen = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    sys.stdout.write(json.dumps(listener.getsockname()[1]) + "\n")
    sys.stdout.flush()
    serve(listener, chosen.port, chosen.seconds)


if __name__ == "__main__":
    main()
