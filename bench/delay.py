"""A TCP relay that keeps every byte for a fixed time each way: a long line without a rate limit.

`python -m bench.delay PORT SECONDS` prints the port it listens on. Threads and blocking sockets:
`time.sleep` is exact to about 0.1 ms, which an epoll time-out in milliseconds is not.
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
"""What the line holds at most, in reads: far above bandwidth times delay here, and still a bound."""
_Line: TypeAlias = "queue.Queue[tuple[float, bytes]]"


def carry(source: socket.socket, sink: socket.socket, delay_seconds: float) -> None:
    """Starts one direction; its end is passed on like its bytes."""
    line: _Line = queue.Queue(_CHUNKS_UNDERWAY)
    threading.Thread(target=_take_in, args=(source, line, delay_seconds), daemon=True).start()
    threading.Thread(target=_give_out, args=(line, sink), daemon=True).start()


def _take_in(source: socket.socket, line: _Line, delay_seconds: float) -> None:
    data = b"?"
    while data:
        try:
            data = source.recv(_READ_BYTES)
        except OSError:
            data = b""
        line.put((time.monotonic() + delay_seconds, data))


def _give_out(line: _Line, sink: socket.socket) -> None:
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
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carry(near, far, delay_seconds)
        carry(far, near, delay_seconds)


@contextlib.contextmanager
def maybe_delayed(port: int, delay_seconds: float, log: Path) -> Iterator[int]:
    """The port to use instead of `port`: a relay's, or itself when there is no delay."""
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
