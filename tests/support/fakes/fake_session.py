"""A session without protocol, mux or carrier. Its streams are trio's memory streams, its agent is a test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio
import trio.testing

from tunnel_core.congestion.controller import CongestionController
from tunnel_core.limits import Limits
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.state import Loss, SessionState
from tunnel_core.session.statistics import SessionStatistics, flight_statistics
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_core.wire.frames import Service


class FakeStream(trio.abc.HalfCloseableStream):
    """The server's end of a stream, with the part of ``TunnelStream`` that entrances use."""

    def __init__(
        self,
        number: int,
        target: str,
        user: str,
        entrance: str,
        on_opened: Callable[[], None],
        *,
        target_tls: bool = False,
    ) -> None:
        self.id = f"facade00-{number}"
        self._on_opened = on_opened
        self.target, self.user, self.entrance = target, user, entrance
        self.target_tls = target_tls
        self.address = ""
        self.opened_at = trio.current_time()
        self.bytes_in = self.bytes_out = 0
        self.ended_by: Reason | None = None
        self._near, far = trio.testing.memory_stream_pair()
        self.far = FarEnd(self, far)
        self._answered = trio.Event()
        self._broken: StreamReset | None = None
        self.was_reset = trio.Event()
        self.was_closed = False
        self._reader: Callable[[], None] | None = None

    @property
    def is_closed(self) -> bool:
        return self.was_closed or self.was_reset.is_set()

    async def wait_opened(self, wait_left: Callable[[], Awaitable[None]] = trio.sleep_forever) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_answered, nursery.cancel_scope)
            await wait_left()
            nursery.cancel_scope.cancel()
        if not self._answered.is_set():
            raise Refused(Reason.USER_LEFT)
        if self._broken is not None:
            raise Refused(self._broken.reason, self._broken.detail)

    async def _cancel_when_answered(self, scope: trio.CancelScope) -> None:
        await self._answered.wait()
        scope.cancel()

    def opened(self, address: str) -> None:
        self.address = address
        self._answered.set()
        self._on_opened()

    def send_early(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.far.stream.receive_stream.put_data(data)

    def reset(self, reason: Reason, detail: str = "") -> None:
        if self._broken is None and not self.was_closed:
            self._broken = StreamReset(reason, detail)
            self.ended_by = reason
            self._answered.set()
            self.was_reset.set()
            self._near.send_stream.close()
            self._near.receive_stream.close()
            self.far.stream.send_stream.close()
            self.far.stream.receive_stream.close()
            if self._reader is not None:
                self._reader()

    def abort(self) -> None:
        """Reset the stream, as ``relay`` does with a stream that is no ``TunnelStream``."""
        self.reset(Reason.USER_LEFT)

    def _check(self) -> None:
        if self._broken is not None:
            raise StreamReset(self._broken.reason, self._broken.detail)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._check()
        try:
            data = bytes(await self._near.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._check()
            raise
        self._check()
        self.bytes_in += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        self.bytes_out += len(data)
        try:
            await self._near.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._check()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._near.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        self._check()
        await self._near.send_eof()

    def set_reader(self, reader: Callable[[], None] | None) -> None:
        """Call ``reader`` when the stream is reset; real streams also call it for bytes and for the end."""
        self._reader = reader

    def check(self) -> None:
        self._check()

    def close_nowait(self) -> None:
        self.was_closed = True
        self._near.send_stream.close()
        self._near.receive_stream.close()

    async def aclose(self) -> None:
        if trio.current_effective_deadline() == -float("inf"):
            self.reset(Reason.USER_LEFT)
        self.was_closed = True
        await self._near.aclose()


class FarEnd:
    """The agent's end of a stream. It answers the open, and is the target."""

    def __init__(self, near: FakeStream, stream: trio.StapledStream) -> None:
        self.near = near
        self.stream = stream

    def accept(self, address: str = "127.0.0.1:80") -> None:
        self.near.opened(address)

    def refuse(self, reason: Reason, detail: str) -> None:
        self.near.reset(reason, detail)

    reset = refuse


Agent = Callable[[FarEnd], Awaitable[None]]


class FakeSession:
    """A session whose ``agent`` runs as a task of ``nursery`` for each opened stream."""

    def __init__(
        self, nursery: trio.Nursery, node: str, agent: Agent, services: tuple[Service, ...] = ()
    ) -> None:
        self.node = node
        self.session_id = "facade00"
        self.attached_at = trio.current_time()
        self.figures = SessionStatistics(
            round_trip_seconds=0.0123,
            last_received_at=self.attached_at,
            flight=flight_statistics(CongestionController(Limits(), 0.0)),
        )
        self.peer_address = "192.0.2.1:4711"
        self.state = SessionState.ATTACHED
        self.lost: Loss | None = None
        self.instance, self.boot = b"i", b"b"
        self.software = "qanat-agent/0.1.0"
        self.services = services
        self.streams: dict[int, FakeStream] = {}
        self.ended: tuple[Reason, str] | None = None
        self.refuses: Refused | None = None
        self.was_opened = trio.Event()
        self.is_draining = False
        self._nursery = nursery
        self._agent = agent

    def statistics(self) -> SessionStatistics:
        return replace(self.figures, open_streams=len(self.streams))

    def open(
        self,
        target: Target,
        *,
        user: str,
        entrance: str,
        early_data: bytes = b"",
        verb: str = "",
        target_tls: bool = False,
        on_opened: Callable[[], None] = lambda: None,
    ) -> FakeStream:
        if self.refuses is not None:
            raise self.refuses
        number = len(self.streams) * 2 + 1
        stream = FakeStream(number, str(target), user, entrance, on_opened, target_tls=target_tls)
        self.streams[len(self.streams)] = stream
        if early_data:
            stream.send_early(early_data)
        self.was_opened.set()
        self._nursery.start_soon(self._agent, stream.far)
        return stream

    def end(self, reason: Reason, detail: str = "") -> None:
        self.ended = (reason, detail)
        for stream in self.streams.values():
            stream.reset(reason, detail)
