"""One end of the baseline: bare `grpc.aio`, one call for each connection, raw bytes, 256 KiB reads.

The baseline uses only asyncio: no trio, no bridge, no mux, no credit. It has the tunnel's topology. The agent
dials out with mTLS and keeps calls waiting, so that a new connection costs no extra round trip. The server
gives each accepted connection to a waiting call, whose first message is the port to dial. An empty message
from the server is the end of the user's half.

This is the least work of a tunnel on gRPC, so it is the baseline. Limits, reasons and memory bounds are
missing, and their cost too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc

READ_BYTES = 256 << 10
WAITING_CALLS = 64
METHOD = "/bench.Tunnel/Carry"
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_frame_size", 4 << 20),
    ("grpc.http2.lookahead_bytes", 4 << 20),
]
Read: TypeAlias = Callable[[], Awaitable[Any]]
Write: TypeAlias = Callable[[bytes], Awaitable[None]]


async def relay(sock: socket.socket, read: Read, write: Write, end: Callable[[], Awaitable[None]]) -> None:
    """Carry bytes in both directions until both halves have ended. Raises if either end breaks."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_carry_out(sock, write, end))
        group.create_task(_carry_in(sock, read))


async def _carry_out(sock: socket.socket, write: Write, end: Callable[[], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, READ_BYTES):
        await write(data)
    await end()


async def _carry_in(sock: socket.socket, read: Read) -> None:
    loop = asyncio.get_running_loop()
    while (data := await read()) is not grpc.aio.EOF and data:  # type: ignore[attr-defined]
        await loop.sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


class Server(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Server end, which gives each accepted connection to a waiting call."""

    def __init__(self) -> None:
        self._arrivals: asyncio.Queue[tuple[socket.socket, int]] = asyncio.Queue()

    def service(self, details: object) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._carry)

    async def _carry(self, _requests: object, context: Any) -> None:
        sock, target_port = await self._arrivals.get()

        async def end() -> None:
            await context.write(b"")

        with sock, contextlib.suppress(*BROKEN):
            await context.write(str(target_port).encode())
            await relay(sock, context.read, context.write, end)

    async def accept(self, listener: socket.socket, target_port: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            _tune(sock)
            self._arrivals.put_nowait((sock, target_port))


BROKEN = (OSError, ExceptionGroup, grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def serve(folder: Path, target_ports: list[int]) -> None:
    """Run the server end. Prints its ports: the agent's first, then one for each target."""
    handler = Server()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((handler,))
    key, chain, roots = (folder.joinpath(f"server.{kind}").read_bytes() for kind in ("key", "crt", "ca"))
    credentials = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
    agent_port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in target_ports]
    for listener in listeners:
        listener.setblocking(False)
    _print([agent_port, *(listener.getsockname()[1] for listener in listeners)])
    await asyncio.gather(*map(handler.accept, listeners, target_ports))


class Agent:
    """Agent end, which keeps calls waiting, and dials the target of each call that the server uses."""

    def __init__(self, channel: Any) -> None:
        self._method = channel.stream_stream(METHOD)
        self._calls: set[asyncio.Task[None]] = set()

    def start_call(self) -> None:
        """Start a call that waits for a connection."""
        task = asyncio.create_task(self._carry())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _carry(self) -> None:
        call = self._method()
        port = await call.read()
        self.start_call()
        with contextlib.suppress(*BROKEN), socket.socket() as sock:
            try:
                _tune(sock)
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", int(port)))
                await relay(sock, call.read, call.write, call.done_writing)
            finally:
                call.cancel()


async def dial(folder: Path, address: str) -> None:
    """Run the agent end until cancelled. Prints `ready` when its calls wait."""
    key, chain, roots = (folder.joinpath(f"agent.{kind}").read_bytes() for kind in ("key", "crt", "ca"))
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    async with grpc.aio.secure_channel(address, credentials, options=OPTIONS) as channel:
        await channel.channel_ready()
        agent = Agent(channel)
        for _ in range(WAITING_CALLS):
            agent.start_call()
        _print("ready")
        await asyncio.Event().wait()


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["server", "agent"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", nargs="+")
    chosen = parser.parse_args()
    if chosen.role == "server":
        asyncio.run(serve(chosen.folder, [int(port) for port in chosen.peers]))
    else:
        asyncio.run(dial(chosen.folder, chosen.peers[0]))


if __name__ == "__main__":
    main()
