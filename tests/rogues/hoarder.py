"""Rogue nodes that receive what users send, acknowledge the first megabytes, and then nothing more.

    python -m tests.rogues.hoarder SERVER ACKED_MIB BUNDLE...

Each bundle is a node with a session of its own. A line ``attached`` means that all of them are attached.
The server keeps what is not acknowledged, so these nodes hold as much of its memory as its limits allow. The
nodes continue to ping.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from pathlib import Path
from typing import Any

from certs.bundle import Bundle, read_bundle
from tunnel_core.carrier.grpc_runtime import aio, core
from tunnel_core.carrier.interface import ATTACH_PATH
from tunnel_core.limits import KIB, MIB
from tunnel_core.session.handshake import VERSION
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Frame, Hello, Open, Opened, Packet, Ping, Rejected, Use, Welcome

_PING_SECONDS = 0.5
_CREDIT = 1 << 40
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 * MIB),
    ("grpc.http2.lookahead_bytes", 16 * MIB),
]


class Hoarder:
    """One node. ``run`` attaches and receives until the server ends the call."""

    def __init__(self, server: str, bundle: Bundle, acked_bytes: int) -> None:
        self.attached = asyncio.Event()
        credentials = core.ssl_channel_credentials(bundle.roots_pem, bundle.key_pem, bundle.chain_pem)
        options = [*_OPTIONS, ("grpc.default_authority", server)]
        self._channel = aio.secure_channel(f"ipv4:{server}", credentials, options=options)
        self._call: Any = None
        self._left = acked_bytes
        self._number = 0  # of the newest packet that was sent
        self._received = 0
        self._acked = 0
        self._writes = asyncio.Lock()

    async def run(self) -> None:
        self._call = self._channel.stream_stream(ATTACH_PATH)()
        random = secrets.token_bytes(16)
        await self._send(0, Hello(VERSION, 1, random, random, "rogue", initial_credit=64 * KIB))
        while (data := await self._call.read()) is not aio.EOF:
            packet = decode_packet(data)
            assert isinstance(packet, Packet), packet
            self._note(packet, len(data))
            for frame in packet.frames:
                await self._handle(frame)
            if self._left > 0 and self._acked < self._received:
                self._acked = self._received
                await self._send(0)

    def _note(self, packet: Packet, size: int) -> None:
        self._received = max(self._received, packet.number)
        self._left -= size

    async def _handle(self, frame: Frame) -> None:
        if isinstance(frame, Rejected):
            raise SystemExit(f"refused: {frame.reason.word}: {frame.detail}")
        if isinstance(frame, Welcome):
            await self._send(0, Use(1))
            self.attached.set()
            self._pinging = asyncio.create_task(self._ping())
        elif isinstance(frame, Open):
            self._number += 1
            await self._send(self._number, Opened(frame.stream, _CREDIT))

    async def _ping(self) -> None:
        token = 0
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                token += 1
                await self._send(0, Ping(token))
                await asyncio.sleep(_PING_SECONDS)

    async def _send(self, number: int, *frames: Frame) -> None:
        async with self._writes:
            await self._call.write(encode_packet(number, self._acked, frames))


async def attack(server: str, acked_bytes: int, bundles: list[Path]) -> None:
    """Attach all nodes, and hold until the process is killed."""
    hoarders = [Hoarder(server, read_bundle(bundle), acked_bytes) for bundle in bundles]
    async with asyncio.TaskGroup() as tasks:
        for hoarder in hoarders:
            tasks.create_task(hoarder.run())
        for hoarder in hoarders:
            await hoarder.attached.wait()
        print("attached", flush=True)  # noqa: T201 - for the test that started this


if __name__ == "__main__":
    asyncio.run(attack(sys.argv[1], int(sys.argv[2]) * MIB, [Path(name) for name in sys.argv[3:]]))
