"""Two streams joined: the only place in the project where bytes are copied from one to another.

A half that ends is ended on the other side, and the other direction goes on. So it does when a side hears
no more after it ended its own half: what it said is whole, and is delivered. Whether a side that ended its
half is still there is checked while the other is silent (``half_closed``). Anything else abnormal (a reset,
a broken connection, cancellation) aborts both sides, so that truncated output never looks whole. Data that a
target sent before it reset the connection is delivered before that reset: a server that answers 413 and
closes over the rest of the upload resets right behind its answer.

Reads grow while they come back full, to 1 MiB for bulk, and shrink again for chat: the price of the link is
per message.

Each direction is a loop in a task. Between the tunnel and a socket one task is enough, as long as the
kernel takes what comes: then what arrives through the tunnel is moved by a ``Pump``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import trio

from tunnel_core.limits import KIB, MIB
from tunnel_core.reasons import Reason
from tunnel_core.streams.half_closed import LOOK_SECONDS, Silence, is_gone, wait_silent
from tunnel_core.streams.nowait import NowaitStream, PeerStoppedReceiving
from tunnel_core.streams.pump import Pump
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream

_SMALLEST_READ = 16 * KIB
_LARGEST_READ = 1 * MIB
_BURST = 2 * MIB
"""Bytes that one direction may move before it lets others run."""
_FAREWELL_SECONDS = 5.0
"""Time for which the target may stay open after it has received the rest of what a gone user sent."""
_DELIVERY_SECONDS = 60.0
"""Time in which a target receives none of the rest that a gone user sent, before the relay ends."""
_LAST_WORDS_SECONDS, _STANDSTILL_SECONDS = 5.0, 1.0
"""How long a reset is held back for data that the target sent before it: in all, and without progress."""
_LAST_WORDS_BYTES = 1 * MIB
_LAST_WORDS_LOOK_SECONDS = 0.02


@runtime_checkable
class Abortable(Protocol):
    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RelayResult:
    """What a finished relay moved, and how it ended: ``DONE`` if both halves came to their end."""

    bytes_a_to_b: int
    bytes_b_to_a: int
    reason: Reason
    detail: str = ""


def abort(stream: trio.abc.AsyncResource, reason: Reason, detail: str = "") -> None:
    """Ends ``stream`` so that its other side sees a break, not an end. Never blocks.

    Streams of other kinds, which offer no such thing, are left for their owner to close.
    """
    if isinstance(stream, TunnelStream):
        stream.reset(reason, detail)
    elif isinstance(stream, Abortable):
        stream.abort()
    elif isinstance(stream, trio.SSLStream):
        abort(stream.transport_stream, reason, detail)


async def relay(
    a: trio.abc.Stream,
    b: trio.abc.Stream,
    *,
    left: Reason = Reason.USER_LEFT,
    stopping: Reason = Reason.SERVER_STOPPING,
    half_closed_seconds: float | None = None,
    on_first_byte: Callable[[], None] | None = None,
) -> RelayResult:
    """Moves bytes both ways until both halves have ended, then closes both.

    ``left`` is the reason when a side that is no tunnelled stream breaks (``USER_LEFT`` on the server,
    ``TARGET_RESET`` at the agent), ``stopping`` the reason when the relay is cancelled. When one half has
    ended, both sides are aborted after ``half_closed_seconds`` without a byte; None: never.
    ``on_first_byte`` is called once, when the first bytes of ``b`` are there. Raises nothing of its
    own; cancelled, it aborts both sides first.
    """
    return await _Relay(a, b, left, stopping, half_closed_seconds, on_first_byte).run()


class _Relay:
    def __init__(
        self,
        a: trio.abc.Stream,
        b: trio.abc.Stream,
        left: Reason,
        stopping: Reason,
        half_closed_seconds: float | None,
        on_first_byte: Callable[[], None] | None,
    ) -> None:
        self._a = a
        self._b = b
        self._on_first_byte = on_first_byte
        self._left = left
        self._stopping = stopping
        self._half_closed_seconds = half_closed_seconds
        self._scope = trio.CancelScope()
        self._watch = trio.CancelScope()
        self._half_done = False
        self._has_pump = False  # one task does all, so it must not stay behind the end of a half
        self._moved = {a: 0, b: 0}  # by the side it came from
        self._reason: Reason | None = None
        self._detail = ""
        self._gone: tuple[Reason, str] | None = None  # why a side hears no more
        self._answers_first = False  # b broke: deliver the data of b to a before the reset

    async def run(self) -> RelayResult:
        try:
            with self._scope, self._watching_tunnel():
                a, b = self._a, self._b
                if isinstance(a, TunnelStream) and isinstance(b, NowaitStream):
                    await self._pumped(a, b)
                elif isinstance(b, TunnelStream) and isinstance(a, NowaitStream):
                    await self._pumped(b, a)
                else:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._direction, b, a)
                        await self._direction(a, b)
            if self._scope.cancelled_caught and self._reason is None:
                self._note_reset()
            if self._answers_first:
                await self._deliver_answer()
        except BaseException as error:
            self._fail(Reason.INTERNAL_ERROR if isinstance(error, Exception) else self._stopping, "")
            raise
        finally:
            if self._reason is not None:
                abort(self._a, self._reason, self._detail)
                abort(self._b, self._reason, self._detail)
            await self._close()
        if self._reason is None and self._gone is not None:
            self._reason, self._detail = self._gone
        return RelayResult(
            self._moved[self._a], self._moved[self._b], self._reason or Reason.DONE, self._detail
        )

    async def _pumped(self, tunnel: TunnelStream, local: NowaitStream) -> None:
        """One task while it can be, two as soon as a direction has to wait beside the other."""
        self._has_pump = True
        with trio.CancelScope() as alone:
            pump = Pump(tunnel, local, self._note_moved, alone.cancel)
            pump.on_done = lambda: self._note_pump_done(alone)
            pump.start()
            try:
                # At once: what the client said first is there already, and goes out with the open.
                await self._direction(local, tunnel)
                if not pump.is_done:
                    alone.deadline = trio.current_time() + LOOK_SECONDS
                    await pump.wait_done()
            finally:
                pump.stop()
                self._has_pump = False
        if pump.error is not None and not isinstance(pump.error, PeerStoppedReceiving):
            self._note(pump.error)
        elif alone.cancelled_caught or pump.needs_task:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._direction, tunnel, local, pump)
                await (self._watch_half(local) if self._half_done else self._direction(local, tunnel))

    def _note_pump_done(self, alone: trio.CancelScope) -> None:
        """A half that goes on for long beside an ended one needs a watch, and so a second task."""
        alone.deadline = trio.current_time() + LOOK_SECONDS

    def _watching_tunnel(self) -> AbstractContextManager[None]:
        """A reset through the tunnel ends the relay also while both directions wait for the other side."""
        for side in (self._a, self._b):
            if isinstance(side, TunnelStream):
                return side.cancel_on_reset(self._scope)
        return nullcontext()

    def _note_reset(self) -> None:
        """The relay was cancelled without a reason yet: the tunnel was reset, or a side is gone."""
        try:
            for side in (self._a, self._b):
                if isinstance(side, TunnelStream):
                    side.check()
        except StreamReset as error:
            self._note(error)

    async def _direction(
        self, source: trio.abc.Stream, sink: trio.abc.Stream, stopped: Pump | None = None
    ) -> None:
        """Moves ``source`` to its end; ``stopped`` did so up to where the sink took no more."""
        try:
            if stopped is not None and stopped.error is not None:
                self._note_gone(stopped.error)
            else:
                try:
                    await self._move(source, sink, stopped)
                except PeerStoppedReceiving as error:
                    self._note_gone(error)
            await self._half_ended(source)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._note(error)

    async def _move(self, source: trio.abc.Stream, sink: trio.abc.Stream, stopped: Pump | None) -> None:
        if stopped is not None:
            await stopped.flush()
            if stopped.is_done:
                return
        if isinstance(source, NowaitStream) and isinstance(sink, NowaitStream):
            await self._copy_direct(source, sink)
        else:
            await self._copy(source, sink)

    async def _half_ended(self, source: trio.abc.Stream) -> None:
        if self._half_done:
            self._watch.cancel()
            return
        self._half_done = True
        if not self._has_pump:
            await self._watch_half(source)

    async def _watch_half(self, ended: trio.abc.Stream) -> None:
        """Until the other half ends too: end the relay when ``ended`` wants it no more, or is gone.

        The other side first receives all that ``ended`` sent. Then it has a moment to answer, to nobody, and
        to close: reset at once, it could lose what it has not read yet.
        """
        with self._watch:
            if not isinstance(ended, TunnelStream):
                await self._watch_silence(ended)
                return
            with trio.CancelScope() as left, ended.cancel_on_peer_gone(left):
                await self._watch_silence(ended)
            await self._wait_received(self._b if ended is self._a else self._a)
            await trio.sleep(_FAREWELL_SECONDS)
            raise StreamReset(ended.ended_by or Reason.USER_LEFT)

    async def _watch_silence(self, ended: trio.abc.Stream) -> None:
        try:
            await wait_silent(ended, Silence(self._progress, self._half_closed_seconds))
        except trio.BrokenResourceError as error:
            self._note_gone(error)  # what it said is whole, and is delivered
        else:
            self._fail_silent("one half has ended")
        self._scope.cancel()

    async def _wait_received(self, side: trio.abc.Stream) -> None:
        """Wait until the peer of ``side`` has acknowledged everything, or nothing for a minute."""
        silence = Silence(self._progress, _DELIVERY_SECONDS)
        if not isinstance(side, NowaitStream):
            return
        while side.undelivered and not silence.is_too_long():  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(silence.look_seconds)

    def _fail_silent(self, why: str) -> None:
        limit = self._half_closed_seconds
        self._fail(Reason.IDLE_TIMEOUT, f"{why}, and no byte moved for {limit:g} s (half_closed_seconds)")

    def _progress(self) -> object:
        """What changes while bytes move, into the kernel's buffers and through the tunnel included."""
        sides = (self._a, self._b)
        return [
            *self._moved.values(),
            *(side.undelivered for side in sides if isinstance(side, NowaitStream)),
        ]

    async def _copy_direct(self, source: NowaitStream, sink: NowaitStream) -> None:
        size, burst, quick = _SMALLEST_READ, 0, isinstance(source, TunnelStream)
        tunnel = sink if isinstance(sink, TunnelStream) else None
        while True:
            if size > _SMALLEST_READ:
                size = max(min(size, sink.room), _SMALLEST_READ)
            data = source.receive_nowait(size)
            if data is None:
                await source.wait_readable()
                burst = 0
                continue
            length = len(data)
            if not length:
                await sink.finish()
                return
            self._note_moved(source, length)
            if not sink.send_nowait(data):
                await (sink.flush() if tunnel is None else self._flush_watching(source, tunnel))
            burst += length
            if burst >= _BURST:
                burst = 0
                await trio.lowlevel.checkpoint()
            full = length == size
            size = _next_read(size, length)
            if not full and not quick:
                # A short read emptied the kernel's buffer: asking again would only cost an EAGAIN.
                await source.wait_readable()
                burst = 0

    async def _flush_watching(self, source: NowaitStream, sink: TunnelStream) -> None:
        """While the tunnel takes nothing nobody reads ``source``, and a reset of it would go unnoticed."""
        silence: Silence | None = None
        while sink.room <= 0:
            with trio.move_on_after(LOOK_SECONDS):
                await sink.flush()
            source.check()
            silence = silence or Silence(self._progress, self._half_closed_seconds)
            if silence.is_too_long() and is_gone(source):
                self._fail_silent("the other side is gone")
                self._scope.cancel()

    async def _copy(self, source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        size = _SMALLEST_READ
        while data := await source.receive_some(size):
            self._note_moved(source, len(data))
            await sink.send_all(data)
            size = _next_read(size, len(data))
        if isinstance(sink, trio.abc.HalfCloseableStream):
            await sink.send_eof()
        else:
            await sink.aclose()  # it cannot end one half

    def _note_moved(self, source: trio.abc.Stream, length: int) -> None:
        if not self._moved[source] and source is self._b and self._on_first_byte is not None:
            self._on_first_byte()
        self._moved[source] += length

    def _note_gone(self, error: Exception) -> None:
        """A side receives no more: what it sent is whole."""
        self._gone = self._gone or self._told_by(error)

    def _note(self, error: Exception) -> None:
        if self._reason is None:
            self._answers_first = self._answer_broke(error)
        self._fail(*self._told_by(error))
        self._scope.cancel()

    def _answer_broke(self, error: Exception) -> bool:
        """Whether ``b`` broke, and not by an act of this end. Between two sockets that is not known."""
        if isinstance(error, StreamReset):
            return isinstance(self._b, TunnelStream) and not self._b.was_reset_here
        return isinstance(self._a, TunnelStream)

    async def _deliver_answer(self) -> None:
        """Wait, within bounds, until ``a`` has received what ``b`` sent before it broke."""
        a, b = self._a, self._b
        if not isinstance(a, NowaitStream):
            return
        if isinstance(a, TunnelStream) and isinstance(b, NowaitStream):
            self._drain(b, a)
        ends = trio.current_time() + _LAST_WORDS_SECONDS
        left, deadline = a.undelivered, trio.current_time() + _STANDSTILL_SECONDS
        while left and trio.current_time() < min(ends, deadline):
            await trio.sleep(_LAST_WORDS_LOOK_SECONDS)  # there is no event for an acknowledgement
            if a.undelivered < left:
                deadline = trio.current_time() + _STANDSTILL_SECONDS
            left = a.undelivered

    def _drain(self, target: NowaitStream, tunnel: TunnelStream) -> None:
        """Move what the kernel received from a target before its socket broke; it can still be read."""
        left = _LAST_WORDS_BYTES
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while left > 0 and (data := target.receive_nowait(_SMALLEST_READ)):
                self._note_moved(target, len(data))
                tunnel.send_nowait(data)
                left -= len(data)

    def _told_by(self, error: Exception) -> tuple[Reason, str]:
        if isinstance(error, StreamReset):
            return error.reason, error.detail
        return self._left, str(error)

    def _fail(self, reason: Reason, detail: str) -> None:
        """Both sides will be aborted; the first failure names the reason."""
        if self._reason is None:
            self._reason, self._detail = reason, detail

    async def _close(self) -> None:
        for side in (self._a, self._b):
            if not isinstance(side, NowaitStream):
                await self._close_slowly(side)
            elif self._reason is None:
                side.close_nowait()

    async def _close_slowly(self, side: trio.abc.Stream) -> None:
        if self._reason is None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _FAREWELL_SECONDS):
                await side.aclose()
        await trio.aclose_forcefully(side)


def _next_read(size: int, length: int) -> int:
    if length == size:
        return min(size * 4, _LARGEST_READ)
    if length * 4 < size:
        return max(size // 2, _SMALLEST_READ)
    return size
