"""TCP relay for many connections, which all end with it: `python -m bench.relay PORT TARGET_PORT`.

The relay listens on PORT of the loopback, because agents reconnect to the same port; 0 lets the kernel
choose. It prints the port.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys

import trio

_PIECE_BYTES = 64 << 10
_BACKLOG = 1024


async def serve(port: int, target_port: int) -> None:
    """Relay connections until cancelled."""
    async with trio.open_nursery() as nursery:
        carry = functools.partial(_carry, target_port=target_port)
        [listener] = await nursery.start(
            functools.partial(trio.serve_tcp, carry, port, host="127.0.0.1", backlog=_BACKLOG)
        )
        sys.stdout.write(json.dumps(listener.socket.getsockname()[1]) + "\n")
        sys.stdout.flush()


async def _carry(near: trio.SocketStream, *, target_port: int) -> None:
    far = await trio.open_tcp_stream("127.0.0.1", target_port)
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(_copy, far, near, nursery.cancel_scope)
        await _copy(near, far, nursery.cancel_scope)


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some(_PIECE_BYTES):
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass
    both.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("target_port", type=int)
    chosen = parser.parse_args()
    trio.run(serve, chosen.port, chosen.target_port)


if __name__ == "__main__":
    main()
