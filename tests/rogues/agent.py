"""A rogue agent with a real bundle, which speaks our wire format and breaks every rule of the attach.

``RogueAgent`` is for programs with an asyncio loop of their own. Tests run this module as a process, so that
the attacker takes no turn of the server's loop:

    python -m tests.rogues.agent BUNDLE SERVER ATTACK [--calls N] [--at-once N] [--per-second N]

At its end it prints one JSON object: the number of calls that it began, the number that the server still held
open at the end, and the reasons of the other ends with their numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certs.bundle import Bundle, read_bundle
from tunnel_core.carrier.grpc_runtime import aio, core
from tunnel_core.carrier.interface import ATTACH_PATH
from tunnel_core.limits import MIB
from tunnel_core.session.handshake import VERSION
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Frame, Hello, Malformed, Packet, Rejected, Service, Use, Welcome
from tunnel_core.wire.protobuf import DELIMITED, varint

_ANSWER_SECONDS = 10.0
_NICENESS = 15
"""A real attacker has its own machine, so here the attack gets only processor time that the others leave."""
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each channel
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", 64 * MIB),
]
_PADDING = varint(100 << 3 | DELIMITED) + varint(MIB) + bytes(MIB)
LOST = "lost"
"""Outcome of a call that the server ended without an answer."""


class RogueCall:
    """One call on a connection of its own. Only its owner sends frames."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._call = channel.stream_stream(ATTACH_PATH)()

    async def connected(self) -> bool:
        """Wait until the server has taken the call; return whether it has."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._call.wait_for_connection()
        except (TimeoutError, aio.AioRpcError):
            return False
        return True

    async def send(self, *frames: Frame) -> bool:
        """Send frames as one packet; return whether the call was still open."""
        return await self.send_bytes(encode_packet(0, 0, frames))

    async def send_bytes(self, message: bytes) -> bool:
        """Send any bytes as one message of gRPC."""
        try:
            await self._call.write(message)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def receive(self) -> Packet | Malformed | None:
        """Return the next packet; None when the server ended the call, or sent nothing for ten seconds."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                data = await self._call.read()
        except (TimeoutError, aio.AioRpcError):
            return None
        return None if data is aio.EOF else decode_packet(data)

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()


class RogueAgent:
    """An agent that makes calls with the certificate of ``bundle``, and hellos of invented runs."""

    def __init__(self, bundle: Bundle, server: str) -> None:
        self._server = server
        self._credentials = core.ssl_channel_credentials(bundle.roots_pem, bundle.key_pem, bundle.chain_pem)

    def call(self) -> RogueCall:
        options = [*_OPTIONS, ("grpc.default_authority", self._server)]
        return RogueCall(aio.secure_channel(f"ipv4:{self._server}", self._credentials, options=options))

    def hello(self, **changes: Any) -> Hello:
        """Return a hello of a new run on a new machine; ``changes`` replaces its fields."""
        made = Hello(
            VERSION,
            1,
            secrets.token_bytes(16),
            secrets.token_bytes(16),
            "rogue",
            services=(Service("web", "http", "localhost:80"),),
            initial_credit=64 << 10,
        )
        return made._replace(**changes)

    async def attach(self, call: RogueCall, hello: Hello) -> Welcome | Rejected | None:
        """Do the whole attach, ``use`` included. Returns None if the server ended the call."""
        answer = await self.greet(call, hello)
        if isinstance(answer, Welcome):
            await call.send(Use(hello.attempt))
        return answer

    async def greet(self, call: RogueCall, hello: Hello) -> Welcome | Rejected | None:
        """Send the hello and return the answer, as a probe does."""
        if not await call.send(hello):
            return None
        packet = await call.receive()
        answer = packet.frames[0] if isinstance(packet, Packet) and packet.frames else None
        return answer if isinstance(answer, Welcome | Rejected) else None


class Attack:
    """The calls of an attack, and their outcomes."""

    def __init__(self, agent: RogueAgent) -> None:
        self.agent = agent
        self.begun = 0
        self.outcomes: Counter[str] = Counter()
        self.retry_after_ms = 0
        self.open: list[RogueCall] = []
        self._listeners: list[asyncio.Task[None]] = []

    async def silent(self) -> None:
        """Begin a call without a hello, and leave the call open."""
        call = self._begin()
        if await call.connected():
            self._listeners.append(asyncio.create_task(self._listen(call)))
        else:
            self.outcomes[LOST] += 1

    async def _listen(self, call: RogueCall) -> None:
        self.open.append(call)
        while packet := await call.receive():
            self._note(packet.frames[0] if isinstance(packet, Packet) and packet.frames else None)
        self.open.remove(call)
        await call.close()

    async def takeover(self) -> None:
        """Do a whole attach as another run of the node's agent, and leave the previous run to the server."""
        call = self._begin()
        self._note(await self.agent.attach(call, self.agent.hello()))
        self.open.append(call)
        while len(self.open) > 1:
            await self.open.pop(0).close()

    async def probe(self) -> None:
        """Send a hello, and leave when the welcome arrives."""
        call = self._begin()
        self._note(await self.agent.greet(call, self.agent.hello()))
        await call.close()

    async def oversize(self) -> None:
        """Send a valid hello in a packet with a megabyte of unknown fields."""
        call = self._begin()
        await call.send_bytes(encode_packet(0, 0, [self.agent.hello()]) + _PADDING)
        packet = await call.receive()
        self._note(packet.frames[0] if isinstance(packet, Packet) and packet.frames else None)
        await call.close()

    def _begin(self) -> RogueCall:
        self.begun += 1
        return self.agent.call()

    def _note(self, answer: Frame | None) -> None:
        if isinstance(answer, Rejected):
            self.retry_after_ms = max(self.retry_after_ms, answer.retry_after_ms)
        word = {Welcome: "welcome", Rejected: answer.reason.word if isinstance(answer, Rejected) else ""}
        self.outcomes[word.get(type(answer), LOST)] += 1

    def report(self) -> dict[str, Any]:
        return {
            "begun": self.begun,
            "open": len(self.open),
            "outcomes": dict(self.outcomes),
            "retry_after_ms": self.retry_after_ms,
        }


ATTACKS = ("silent", "takeover", "probe", "oversize")


@dataclass(frozen=True)
class Pace:
    """The number of calls of an attack, in total, at once and per second."""

    calls: int
    at_once: int
    per_second: float


async def attack(bundle: Path, server: str, name: str, pace: Pace) -> dict[str, Any]:
    """Repeat one attack until its calls are made."""
    made = Attack(RogueAgent(read_bundle(bundle), server))
    step: Callable[[], Awaitable[None]] = getattr(made, name)
    clock = asyncio.get_running_loop().time
    begins = clock()
    starts = iter(range(pace.calls))

    async def repeat() -> None:
        for number in starts:
            await asyncio.sleep(begins + number / pace.per_second - clock())
            await step()

    await asyncio.gather(*(repeat() for _ in range(pace.at_once)))
    report = made.report()
    for call in list(made.open):
        await call.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("server")
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--per-second", type=float, default=1000.0)
    chosen = parser.parse_args()
    os.nice(_NICENESS)
    pace = Pace(chosen.calls, chosen.at_once, chosen.per_second)
    made = attack(chosen.bundle, chosen.server, chosen.attack, pace)
    sys.stdout.write(json.dumps(asyncio.run(made)) + "\n")


if __name__ == "__main__":
    main()
