"""A rogue server with a real certificate and TLS, which sends any packet to the real agents that attach.

    async with rogue_server(key_pem=..., chain_pem=..., roots_pem=...) as server:
        session = await server.attached()
        session.open("127.0.0.1:22")
        session.send(Data(1, 0, b"x"))

It answers hellos, pings and numbered packets as a server does, so that the only fault is what the test adds.
``welcome`` and ``resumed`` may be replaced; ``send_bytes`` sends any bytes as one packet.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from tests.support.fakes.grpc_site import open_site
from tunnel_core.carrier.interface import Carrier, ServerTls
from tunnel_core.limits import KIB
from tunnel_core.session.handshake import VERSION
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import (
    Bye,
    Frame,
    Hello,
    Open,
    Packet,
    Ping,
    Pong,
    SessionSecret,
    Use,
    Welcome,
)

_FrameType = TypeVar("_FrameType")
_SECONDS = 10.0


def welcome(**changes: Any) -> Welcome:
    """Return a valid welcome to a new session; ``changes`` replaces its fields."""
    honest = Welcome(
        VERSION,
        secrets.token_bytes(16),
        SessionSecret(secrets.token_bytes(32)),
        0,
        "rogue",
        ping_interval_ms=1000,
        missed_pings=2,
        max_streams=1024,
        early_data_limit=16 * KIB,
        initial_credit=64 * KIB,
    )
    return honest._replace(**changes)


class RogueSession:
    """One carrier of one agent, from its hello on; it is a ``CarrierPort``.

    ``acknowledges``: it acknowledges received packets. ``received`` leaves out ``hushed`` frames, for floods.
    """

    def __init__(self, carrier: Carrier, answer: Callable[[Hello], Sequence[Frame]]) -> None:
        self.carrier = carrier
        self.hello: Hello | None = None
        self.used = False
        self.lost = ""
        self.acknowledges = True
        self.received: list[Frame] = []
        self.hushed: tuple[type, ...] = (Ping, Pong)
        self.count = 0  # of all frames that came
        self._answer = answer
        self._out: deque[bytes] = deque()
        self._number = 0
        self._have = 0
        self._stream = -1
        self._changed = trio.Event()
        carrier.start(self)

    # What the test does.

    def say(self, *frames: Frame) -> None:
        """Send frames as one packet without number."""
        self.send_bytes(encode_packet(0, self._have, frames))

    def send(self, *frames: Frame) -> None:
        """Send frames as the next numbered packet."""
        self._number += 1
        self.send_bytes(encode_packet(self._number, self._have, frames))

    def send_bytes(self, data: bytes) -> None:
        """Send any bytes as one packet."""
        self._out.append(data)
        self.carrier.wake()

    def open(self, target: str, *, entrance: str = "tcp", user: str = "kim", **changes: Any) -> int:
        """Open the next stream; return its number."""
        self.send(self.next_open(target, entrance=entrance, user=user, **changes))
        return self._stream

    def next_open(self, target: str, *, entrance: str = "tcp", user: str = "kim", **changes: Any) -> Open:
        """The frame that opens the next stream."""
        self._stream += 2
        return Open(self._stream, target, user, entrance, 64 * KIB)._replace(**changes)

    def cut(self) -> None:
        """End the carrier without a bye."""
        self.carrier.abandon()

    @property
    def queued(self) -> int:
        """Packets that the carrier has not taken yet."""
        return len(self._out)

    async def wait(self, done: Callable[[], object], seconds: float = _SECONDS) -> None:
        """Wait until ``done()`` is true, looked at after each packet, or the carrier is lost."""
        with trio.fail_after(seconds):
            while not (done() or self.lost):
                self._changed = trio.Event()
                await self._changed.wait()

    async def wait_lost(self, seconds: float = _SECONDS) -> str:
        """Wait until the carrier is lost; return the transport's text."""
        await self.wait(lambda: False, seconds)
        return self.lost

    async def wait_frame(self, kind: type[_FrameType], seconds: float = _SECONDS) -> _FrameType:
        """Wait for the first frame of this kind. ``LookupError`` if the carrier is lost first."""
        await self.wait(lambda: any(isinstance(frame, kind) for frame in self.received), seconds)
        for frame in self.received:
            if isinstance(frame, kind):
                return frame
        raise LookupError(f"the carrier was lost ({self.lost}); {self.received} came before")

    async def wait_bye(self) -> Bye:
        """Wait until the agent ends the session."""
        return await self.wait_frame(Bye)

    # What the carrier calls.

    def packet_received(self, data: bytes) -> None:
        packet = decode_packet(data)
        assert isinstance(packet, Packet), packet
        if packet.number:
            self._have = packet.number
            if self.acknowledges:
                self.say()
        for frame in packet.frames:
            self._take(frame)
        self._changed.set()

    def next_packet(self) -> bytes | None:
        return self._out.popleft() if self._out else None

    def carrier_lost(self, detail: str) -> None:
        self.lost = detail or "lost"
        self._changed.set()

    def _take(self, frame: Frame) -> None:
        self.count += 1
        if isinstance(frame, Hello):
            self.hello = frame
            for answer in self._answer(frame):
                self.say(answer)
                self.used = self.used or (isinstance(answer, Welcome) and answer.used)
        elif isinstance(frame, Use):
            self.used = True
        elif isinstance(frame, Ping):
            self.say(Pong(frame.token))
        if not isinstance(frame, self.hushed):
            self.received.append(frame)


class RogueServer:
    """The rogue's listener. ``answer`` makes the frames that answer a hello."""

    def __init__(self) -> None:
        self.address = ""
        self.answer: Callable[[Hello], Sequence[Frame]] = lambda hello: [welcome()]
        self.sessions: list[RogueSession] = []
        self._came, self._coming = trio.open_memory_channel[RogueSession](10_000)

    def take(self, carrier: Carrier) -> None:
        session = RogueSession(carrier, lambda hello: self.answer(hello))
        self.sessions.append(session)
        self._came.send_nowait(session)

    async def came(self) -> RogueSession:
        """Wait for the next carrier, and return it when its hello has arrived."""
        with trio.fail_after(_SECONDS):
            session = await self._coming.receive()
        await session.wait(lambda: session.hello)
        return session

    async def attached(self) -> RogueSession:
        """Wait for the next carrier that the agent uses."""
        while True:
            session = await self.came()
            await session.wait(lambda session=session: session.used)  # type: ignore[misc]
            if session.used:
                return session


@asynccontextmanager
async def rogue_server(
    *, key_pem: bytes, chain_pem: bytes, roots_pem: bytes, listen: str = "127.0.0.1:0"
) -> AsyncIterator[RogueServer]:
    """Serve until the end of the block. Certificates of agents must lead to ``roots_pem``."""
    server = RogueServer()
    async with open_site(listen=[listen], tls=ServerTls(key_pem, chain_pem, roots_pem)) as site:
        site.on_carrier = server.take
        server.address = site.address
        yield server
