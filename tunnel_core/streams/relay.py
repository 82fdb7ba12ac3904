"""Relay bytes between two streams. No other module copies bytes from one stream to another.

When one half ends, the relay ends it on the other side too, and the other direction goes on. The same
holds when a side stops receiving after it ended its own half, because its data is complete. While the other
side is silent, ``half_closed.py`` checks whether a side that ended its half is still connected. Any other
failure (a reset, a broken connection, cancellation) aborts both sides, so that truncated output never looks
complete. Data that a target sent before its reset is delivered before that reset. A target that answers 413
and closes during the upload resets right behind its answer.

Reads grow while they come back full, to 1 MiB for bulk, and shrink again for small messages, because the cost
of the tunnel is per message.

Each direction is a loop in a task. Between the tunnel and a socket there is one task, which sleeps while the
pieces are small and the other side accepts them: callbacks move them (``pump.py``). It wakes for bulk.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import trio

from tunnel_core.limits import MIB
from tunnel_core.reasons import Reason
from tunnel_core.streams.aborting import abort
from tunnel_core.streams.delivery import wait_delivered
from tunnel_core.streams.half_closed import CHECK_SECONDS, Silence, is_peer_gone, wait_silent
from tunnel_core.streams.nowait import NowaitStream, PeerStoppedReceiving
from tunnel_core.streams.pump import Feed, Pump
from tunnel_core.streams.read_sizes import SMALLEST_READ, next_read
from tunnel_core.streams.relay_wait import RelayWait
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream

__all__ = ["RelayResult", "abort", "relay"]

_BURST = 2 * MIB
"""Bytes that one direction may move before a checkpoint."""
_CLOSE_SECONDS = 5.0
"""Time for which the target may stay open after it has received the rest of what a gone user sent."""
_DELIVERY_STALL_SECONDS = 60.0
"""Time in which a target receives none of the rest that a gone user sent, before the relay ends."""
_RESET_DRAIN_BYTES = 1 * MIB


class RelayResult(NamedTuple):
    """The bytes that a relay moved, and how it ended: ``DONE`` if both halves ended."""

    bytes_a_to_b: int
    bytes_b_to_a: int
    reason: Reason
    detail: str = ""


async def relay(
    a: trio.abc.Stream,
    b: trio.abc.Stream,
    *,
    break_reason: Reason = Reason.USER_LEFT,
    cancel_reason: Reason = Reason.SERVER_STOPPING,
    half_closed_seconds: float | None = None,
    on_first_byte: Callable[[], None] | None = None,
) -> RelayResult:
    """Move bytes both ways until both halves have ended, then close both streams.

    ``break_reason`` is the reason when a side that is no tunnelled stream breaks (``USER_LEFT`` on the
    server, ``TARGET_RESET`` at the agent). ``cancel_reason`` is the reason when the relay is cancelled. When
    one half has ended, the relay aborts both sides after ``half_closed_seconds`` without a byte; None: never.
    ``on_first_byte`` is called once, when the first bytes of ``b`` arrive. Raises no error of the streams.
    Cancellation aborts both sides first.
    """
    return await _Relay(a, b, break_reason, cancel_reason, half_closed_seconds, on_first_byte).run()


class _Relay:
    def __init__(
        self,
        a: trio.abc.Stream,
        b: trio.abc.Stream,
        break_reason: Reason,
        cancel_reason: Reason,
        half_closed_seconds: float | None,
        on_first_byte: Callable[[], None] | None,
    ) -> None:
        self._a = a
        self._b = b
        self._on_first_byte = on_first_byte
        self._break_reason = break_reason
        self._cancel_reason = cancel_reason
        self._half_closed_seconds = half_closed_seconds
        self._cancel: Callable[[], object] = _do_nothing  # the tasks that relay now
        self._half_done = False
        self._moved = {a: 0, b: 0}  # bytes by source
        self._reason: Reason | None = None
        self._detail = ""
        self._stopped_by: tuple[Reason, str] | None = None  # why a side receives no more
        self._delivers_first = False  # b broke, so its data must reach a before the reset

    async def run(self) -> RelayResult:
        try:
            await self._relay_both()
            if self._delivers_first:
                await self._deliver_answer()
        except BaseException as error:
            self._fail(Reason.INTERNAL_ERROR if isinstance(error, Exception) else self._cancel_reason, "")
            raise
        finally:
            if self._reason is not None:
                abort(self._a, self._reason, self._detail)
                abort(self._b, self._reason, self._detail)
            await self._close()
        if self._reason is None and self._stopped_by is not None:
            self._reason, self._detail = self._stopped_by
        return RelayResult(
            self._moved[self._a], self._moved[self._b], self._reason or Reason.DONE, self._detail
        )

    async def _relay_both(self) -> None:
        """Relay with one task if a side is the tunnel, and with two when both directions must wait."""
        tunnel, local = (self._a, self._b) if isinstance(self._a, TunnelStream) else (self._b, self._a)
        pump: Pump | None = None
        if isinstance(tunnel, TunnelStream) and isinstance(local, NowaitStream):
            pump = await self._relay_by_callbacks(tunnel, local)
            if pump is None:
                return
        with trio.CancelScope() as scope:
            self._cancel = scope.cancel
            if isinstance(tunnel, TunnelStream):
                tunnel.call_on_reset(scope.cancel)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._direction, tunnel, local, pump)
                await (self._watch_half(local) if self._half_done else self._direction(local, tunnel))
        if scope.cancelled_caught and isinstance(tunnel, TunnelStream):
            self._note_reset(tunnel)

    async def _relay_by_callbacks(self, tunnel: TunnelStream, local: NowaitStream) -> Pump | None:
        """Relay with one task, which sleeps while the reads are small.

        Return None when the relay is over, and the pump from the tunnel if two tasks are needed.
        """
        wait = RelayWait()
        pump = Pump(tunnel, local, self._note_moved, wait.end)
        pump.on_done = wait.half_ended
        feed = Feed(local, tunnel, self._note_moved, wait.wake, wait.half_ended)
        try:
            tunnel.call_on_reset(wait.end_by_reset)
            pump.start()
            feed.start()
            while not wait.is_over and self._reason is None:
                if feed.needs_task:
                    await self._move_bulk(local, tunnel, feed, wait)
                else:
                    await wait.wait()
        finally:
            tunnel.call_on_reset(None)
            pump.stop()
            feed.stop()
            wait.close()
        self._half_done = feed.is_done
        if wait.was_reset:
            self._note_reset(tunnel)
        if self._reason is None and pump.error and not isinstance(pump.error, PeerStoppedReceiving):
            self._note(pump.error)
        is_over = self._reason is not None or (feed.is_done and pump.is_done and not pump.needs_task)
        return None if is_over else pump

    async def _move_bulk(
        self, local: NowaitStream, tunnel: TunnelStream, feed: Feed, wait: RelayWait
    ) -> None:
        """Move the bytes of ``local`` until its reads are small again, its half ends, or ``wait`` is over."""
        is_ended = True
        with trio.CancelScope() as scope:
            self._cancel = wait.interrupt = scope.cancel
            try:
                if error := feed.take_error():
                    raise error
                await self._flush_watching(local, tunnel)
                is_ended = await self._copy_direct(local, tunnel, leaves=feed.can_resume)
            except PeerStoppedReceiving as stopped:
                self._note_stopped(stopped)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as broken:
                self._note(broken)
            finally:
                wait.interrupt = error = None
        if not scope.cancelled_caught and self._reason is None:
            feed.end() if is_ended else feed.resume()

    def _note_reset(self, tunnel: TunnelStream) -> None:
        try:
            tunnel.check()
        except StreamReset as error:
            self._note(error)

    async def _direction(
        self, source: trio.abc.Stream, sink: trio.abc.Stream, stopped: Pump | None = None
    ) -> None:
        """Move ``source`` to its end. ``stopped``: the pump that did so until the sink accepted no more."""
        try:
            if stopped is not None and stopped.error is not None:
                self._note_stopped(stopped.error)
            else:
                try:
                    if stopped is not None:
                        await stopped.flush()
                    if stopped is None or not stopped.is_done:
                        if isinstance(source, NowaitStream) and isinstance(sink, NowaitStream):
                            await self._copy_direct(source, sink, leaves=False)
                        else:
                            await self._copy(source, sink)
                except PeerStoppedReceiving as error:
                    self._note_stopped(error)
            await self._half_ended(source)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._note(error)

    @functools.cached_property
    def _watch(self) -> trio.CancelScope:  # of the watch between the two ends; most relays need none
        return trio.CancelScope()

    async def _half_ended(self, source: trio.abc.Stream) -> None:
        if self._half_done:
            self._watch.cancel()
            return
        self._half_done = True
        await self._watch_half(source)

    async def _watch_half(self, ended: trio.abc.Stream) -> None:
        """Until the other half ends too, end the relay when ``ended`` stops receiving or its peer is gone.

        The other side first receives all bytes of ``ended``. Then it has a moment to close. With an immediate
        reset it could lose bytes that it has not read yet.
        """
        with self._watch:
            if not isinstance(ended, TunnelStream):
                await self._watch_silence(ended)
                return
            with trio.CancelScope() as until_gone, ended.cancel_on_peer_gone(until_gone):
                await self._watch_silence(ended)
            await self._wait_received(self._b if ended is self._a else self._a)
            await trio.sleep(_CLOSE_SECONDS)
            raise StreamReset(ended.ended_by or Reason.USER_LEFT)

    async def _watch_silence(self, ended: trio.abc.Stream) -> None:
        try:
            await wait_silent(ended, Silence(self._progress, self._half_closed_seconds))
        except trio.BrokenResourceError as error:
            self._note_stopped(error)  # its data is complete and will be delivered
        else:
            self._fail_silent("one half has ended")
        self._cancel()

    async def _wait_received(self, side: trio.abc.Stream) -> None:
        """Wait until the peer of ``side`` acknowledged all bytes, or none for a minute."""
        silence = Silence(self._progress, _DELIVERY_STALL_SECONDS)
        if not isinstance(side, NowaitStream):
            return
        while side.undelivered and not silence.is_too_long():  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(silence.check_seconds)

    def _fail_silent(self, cause: str) -> None:
        limit = self._half_closed_seconds
        self._fail(Reason.IDLE_TIMEOUT, f"{cause}, and no byte moved for {limit:g} s (half_closed_seconds)")

    def _progress(self) -> object:
        """Return a value that changes while bytes move, kernel buffers and the tunnel included."""
        sides = (self._a, self._b)
        return [
            *self._moved.values(),
            *(side.undelivered for side in sides if isinstance(side, NowaitStream)),
        ]

    async def _copy_direct(self, source: NowaitStream, sink: NowaitStream, *, leaves: bool) -> bool:
        """Move ``source`` to its end and return True.

        With ``leaves`` it returns False when the reads have become small.
        """
        size, burst, from_tunnel = SMALLEST_READ, 0, isinstance(source, TunnelStream)
        tunnel = sink if isinstance(sink, TunnelStream) else None
        while True:
            if size > SMALLEST_READ:
                size = max(min(size, sink.room), SMALLEST_READ)
            data = source.receive_nowait(size)
            if data is None:
                if leaves and size == SMALLEST_READ:
                    return False
                await source.wait_readable()
                burst = 0
                continue
            length = len(data)
            if not length:
                await sink.finish()
                return True
            self._note_moved(source, length)
            if not sink.send_nowait(data):
                await (sink.flush() if tunnel is None else self._flush_watching(source, tunnel))
            burst += length
            if burst >= _BURST:
                burst = 0
                await trio.lowlevel.checkpoint()
            full = length == size
            size = next_read(size, length)
            if not full and not from_tunnel:
                # A short read emptied the kernel's buffer, so another would only cost an EAGAIN.
                if leaves and size == SMALLEST_READ:
                    return False
                await source.wait_readable()
                burst = 0

    async def _flush_watching(self, source: NowaitStream, sink: TunnelStream) -> None:
        """Flush, and check ``source`` meanwhile, because without reads its reset would go unnoticed."""
        silence: Silence | None = None
        while sink.room <= 0:
            with trio.move_on_after(CHECK_SECONDS) as timeout:
                await sink.flush()
            if not timeout.cancelled_caught:
                return
            source.check()
            silence = silence or Silence(self._progress, self._half_closed_seconds)
            if silence.is_too_long() and is_peer_gone(source):
                self._fail_silent("the other side is gone")
                self._cancel()

    async def _copy(self, source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        size = SMALLEST_READ
        while data := await source.receive_some(size):
            self._note_moved(source, len(data))
            await sink.send_all(data)
            size = next_read(size, len(data))
        if isinstance(sink, trio.abc.HalfCloseableStream):
            await sink.send_eof()
        else:
            await sink.aclose()  # this stream cannot end one half

    def _note_moved(self, source: trio.abc.Stream, length: int) -> None:
        if not self._moved[source] and source is self._b and self._on_first_byte is not None:
            self._on_first_byte()
        self._moved[source] += length

    def _note_stopped(self, error: Exception) -> None:
        """Note that a side receives no more, while its own data is complete."""
        self._stopped_by = self._stopped_by or self._reason_and_detail(error)

    def _note(self, error: Exception) -> None:
        if self._reason is None:
            self._delivers_first = self._must_deliver_first(error)
        self._fail(*self._reason_and_detail(error))
        self._cancel()

    def _must_deliver_first(self, error: Exception) -> bool:
        """Whether ``b`` broke by an act of its peer. Between two sockets the broken side is not known."""
        if isinstance(error, StreamReset):
            return isinstance(self._b, TunnelStream) and not self._b.was_reset_here
        return isinstance(self._a, TunnelStream)

    async def _deliver_answer(self) -> None:
        """Wait, within bounds, until ``a`` received the bytes that ``b`` sent before it broke."""
        a, b = self._a, self._b
        if not isinstance(a, NowaitStream):
            return
        if isinstance(a, TunnelStream) and isinstance(b, NowaitStream):
            self._drain(b, a)
        await wait_delivered(a)

    def _drain(self, target: NowaitStream, tunnel: TunnelStream) -> None:
        """Move the bytes that the kernel received before the target's socket broke; they stay readable."""
        left = _RESET_DRAIN_BYTES
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while left > 0 and (data := target.receive_nowait(SMALLEST_READ)):
                self._note_moved(target, len(data))
                tunnel.send_nowait(data)
                left -= len(data)

    def _reason_and_detail(self, error: Exception) -> tuple[Reason, str]:
        if isinstance(error, StreamReset):
            return error.reason, error.detail
        return self._break_reason, str(error)

    def _fail(self, reason: Reason, detail: str) -> None:
        """Have both sides aborted. The first failure sets the reason."""
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
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                await side.aclose()
        await trio.aclose_forcefully(side)


def _do_nothing() -> None:
    """Stand in for the cancellation of tasks, while there is none that waits."""
