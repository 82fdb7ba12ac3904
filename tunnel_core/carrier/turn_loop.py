"""An asyncio loop for short turns: it never sleeps, and most of its turns are one round of asyncio.

A turn of asyncio's own loop takes three rounds for one event: the event, the task that it wakes, and a round
that finds nothing. A round costs as much as decoding a packet. Here all work that ``call_soon`` queues runs
inside the selector's ``select``, where asyncio asks for events, and so do the events of ``add_reader``. Only
timers and calls from threads go through asyncio's own queue.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import select
import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")

_EVENTS_AT_ONCE = 16
"""More than a loop has that only runs gRPC, which has one descriptor."""
_CALLS_AT_ONCE = 200
"""Calls of one turn, if its time is not over before: some hundred microseconds of a loop that spins."""


class _Call(asyncio.Handle):
    """One queued call. ``asyncio.Handle`` runs its call by a private method, and costs twice as much."""

    __slots__ = ("arguments", "context", "function", "is_cancelled")

    def __init__(
        self, function: Callable[..., object], arguments: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.context = context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def get_context(self) -> contextvars.Context:
        return self.context

    def __repr__(self) -> str:
        return f"<call of {self.function!r}>"


class TurnLoop(asyncio.SelectorEventLoop):
    """A loop whose owner calls :meth:`turn` when there may be work.

    It ignores calls from threads after its end, because threads of libraries outlive it. asyncio raises for
    such calls. gRPC has one completion queue for all loops of a process, so it would raise the exception
    inside the next loop. ``on_timer`` is called with the time of each new timer, in the loop's clock.
    """

    def __init__(self, on_timer: Callable[[float], None]) -> None:
        self._turns = _TurnSelector(self._run_ready, self.stop)
        self._on_timer = on_timer
        self._queue: deque[_Call] = deque()
        self._end_at = 0.0
        super().__init__(self._turns)

    @property
    def descriptor(self) -> int:
        """The descriptor that is readable when a descriptor of the loop has an event."""
        return self._turns.fileno()

    @property
    def has_work(self) -> bool:
        """Whether the last turn ended at its bound, with work left."""
        return bool(self._queue)

    @property
    def next_timer_seconds(self) -> float | None:
        """Seconds until the next timer, at the end of the last turn for timers; None without one."""
        return self._turns.idle_seconds

    def turn(self, max_seconds: float, *, for_timers: bool = False) -> None:
        """Run what is due, for about ``max_seconds`` at most.

        ``for_timers``: find the next timer too, which costs a second round. Raises ``SystemExit`` and
        ``KeyboardInterrupt``.
        """
        self._end_at = self._turns.end_at = time.monotonic() + max_seconds
        self._turns.idle_seconds = None
        self._turns.is_for_timers = for_timers
        while True:
            if not for_timers:
                self.stop()  # before the run: exactly one round
            self.run_forever()
            # Timers and threads have queued work after the round's ``select``.
            if not self._queue or time.monotonic() >= self._end_at:
                return

    def _run_ready(self) -> None:
        queue, end_at = self._queue, self._end_at
        for _ in range(_CALLS_AT_ONCE):
            if not queue:
                return
            call = queue.popleft()
            if not call.is_cancelled:
                self._run(call)
                if time.monotonic() >= end_at:
                    break
        self._end_at = 0.0  # the turn is over

    def _run(self, call: _Call) -> None:
        try:
            call.context.run(call.function, *call.arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # With the message of asyncio's own loop.
            message = f"Exception in callback {call.function!r}"
            self.call_exception_handler({"message": message, "exception": error, "handle": call})

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        call = _Call(callback, args, contextvars.copy_context() if context is None else context)
        self._queue.append(call)
        return call

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        self._on_timer(when)
        return timer

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if not self.is_closed():
            return super().call_soon_threadsafe(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        handle.cancel()
        return handle

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        self._turns.watch(fd, _Reader(self._run, _Call(callback, args, contextvars.copy_context())))

    def remove_reader(self, fd: Any) -> bool:
        return not self.is_closed() and self._turns.unwatch(fd)


class _Reader:
    """The function of a descriptor that ``add_reader`` added."""

    __slots__ = ("_call", "_run")

    def __init__(self, run: Callable[[_Call], None], call: _Call) -> None:
        self._run = run
        self._call = call

    def __call__(self) -> None:
        self._run(self._call)


class _TurnSelector(selectors.EpollSelector):
    """A selector that never blocks, and runs the loop's work. ``stop`` ends a turn for timers."""

    def __init__(self, run_ready: Callable[[], None], stop: Callable[[], None]) -> None:
        super().__init__()
        self.is_for_timers = False
        self.end_at = 0.0
        self.idle_seconds: float | None = None
        self._run_ready = run_ready
        self._stop = stop
        # The same poller, without the objects that EpollSelector makes for each event.
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        self._readers: dict[int, Callable[[], None]] = {}

    def watch(self, fd: Any, reader: Callable[[], None]) -> None:
        """Call ``reader`` while the descriptor is readable, in place of an earlier reader."""
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        if descriptor not in self._readers:
            self.register(descriptor, selectors.EVENT_READ)
        self._readers[descriptor] = reader

    def unwatch(self, fd: Any) -> bool:
        """End the watch. Return whether there was one."""
        descriptor = fd if isinstance(fd, int) else fd.fileno()
        if self._readers.pop(descriptor, None) is None:
            return False
        self.unregister(descriptor)
        return True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        has_others = False
        for descriptor, _ in self._epoll.poll(0, _EVENTS_AT_ONCE):
            reader = self._readers.get(descriptor)
            if reader is None:
                has_others = True
            else:
                reader()
        self._run_ready()
        # A timeout of 0 means that timers or calls of threads are due.
        if self.is_for_timers and (timeout != 0 or time.monotonic() >= self.end_at):
            self.idle_seconds = timeout
            self._stop()
        if not has_others:
            return []
        return [event for event in super().select(0) if event[0].fd not in self._readers]

    def close(self) -> None:
        self._epoll.close()
        super().close()
