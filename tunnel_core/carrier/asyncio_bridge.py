"""An asyncio loop nested inside trio, through the public interfaces of both.

Theory of operation
1. gRPC's public Python API needs a running asyncio loop; everything else here is trio. So the loop
   is run in *turns*: ``run_forever()`` with a selector that never blocks, that notes how long
   asyncio would have slept, and that stops the loop when there is nothing left to do.
2. Who takes a turn: the driver, a trio task parked on the selector's epoll descriptor with asyncio's
   next timer as its deadline; and any trio task that has just queued work (:meth:`Bridge.turn`).
   Work queued without a turn would wait for unrelated traffic, so every entry to the loop is a
   method of :class:`Bridge` that takes or asks for a turn. Callbacks of the loop may reschedule trio
   tasks, start them and set events: a turn always happens inside some trio task.
3. A turn is bounded in rounds and in time, so that a busy loop cannot starve trio. What is left
   over is continued in trio's next pass, after everybody else had their step.
4. A turn inside a turn does nothing: the outer one sees the new work before it ends.
5. A turn never raises into the task that happens to take it, and holds back KeyboardInterrupt
   (trio delivers it at the main task's next checkpoint). What goes wrong inside the loop is
   collected, cancels the body of :func:`open_bridge`, and is raised when that has unwound.
6. The driver is shielded and outlives all calls: a cancelled call needs turns to end. Were the
   driver cancelled beside its users, they would wait for ever.

Not done here: child processes, signals (trio's handlers stay in place), threads other than
through asyncio's own ``call_soon_threadsafe``, which wakes the driver by the selector. Linux only,
as a descriptor that another poller can wait on is needed. Rejected: trio-asyncio (twice the CPU),
trio as asyncio's guest (a thread hop per wait).
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import selectors
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# The longest a turn may keep trio waiting, beyond the one callback that is running: well under the
# 30 ms that a 10 ms timer may be late, and over what a burst of packets needs.
_MAX_TURN_SECONDS = 0.004
_MAX_TURN_ROUNDS = 64
_LOOK_ROUNDS = 8
# How long tasks of the loop get to end after they were cancelled at the very end.
_CLOSE_SECONDS = 5.0


class BridgeError(Exception):
    """The asyncio side misbehaved in a way that left no exception of its own."""


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Runs an asyncio loop beside the body; to be the outermost scope of a program.

    On the way out, tasks of the loop that are left are cancelled and waited for. If anything
    failed inside the loop, the body is cancelled and the failure is raised: alone, or in a
    ``BaseExceptionGroup`` when there are several or the body failed too. Otherwise the body's own
    exception passes through as it is, in no group.
    """
    bridge = Bridge()
    raised: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge._drive)
        nursery.start_soon(bridge._take_asked_turns)
        try:
            with bridge._body:
                yield bridge
        except BaseException as error:
            raised.append(error)
        await bridge._close()
    _raise_any(bridge._failures, raised)


class BridgeTask:
    """A task of the loop that nobody waits for yet. Made by :meth:`Bridge.start`."""

    def __init__(self, bridge: Bridge, task: asyncio.Task[Any]) -> None:
        self._bridge = bridge
        self._task = task
        self._ended = trio.Event()
        self._waiting = 0
        bridge._started.add(self)
        task.add_done_callback(self._note_end)

    def cancel(self) -> None:
        """Asks the task to end; does not wait."""
        self._task.cancel()
        self._bridge.turn()

    async def wait(self) -> None:
        """Waits for the end and raises the task's exception, if any. To be cancelled is no error.

        Cancelling the wait leaves the task running.
        """
        self._waiting += 1
        try:
            await self._ended.wait()
        finally:
            self._waiting -= 1
        if not self._task.cancelled():
            self._task.result()

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._bridge._started.discard(self)
        self._ended.set()
        if task.cancelled() or self._waiting:
            return
        error = task.exception()
        if error is not None:
            self._bridge._fail(error)


class Bridge:
    """The way from trio into the loop. Made by :func:`open_bridge`; used from its trio thread only."""

    def __init__(self) -> None:
        self._selector = _TurnSelector()
        self._loop = _Loop(self._selector)
        self._loop.set_exception_handler(self._note_loop_error)
        self._selector.stop = self._loop.stop
        self._token = trio.lowlevel.current_trio_token()
        self._failures: list[BaseException] = []
        self._body = trio.CancelScope()
        self._alarm = trio.CancelScope()  # its deadline wakes the driver for asyncio's next timer
        self._turner: trio.lowlevel.Task | None = None  # parked until a turn is asked for
        self._asked = False
        self._in_turn = False
        self._closing = False
        self._closed = False
        self._started: set[BridgeTask] = set()  # the loop alone would not keep a task from the collector
        self._drivers_left = 2
        self._drivers_ended = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs ``coroutine`` as a task of the loop; its result or exception.

        Cancelled, it cancels the task and waits for its end. A result that came nevertheless is
        returned, as nothing is lost by that.
        """
        await self._check_may_start(coroutine)
        return await _Call(self, self._loop.create_task(coroutine)).outcome()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> BridgeTask:
        """Starts ``coroutine`` as a task of the loop.

        If it ends with an exception while nobody is in :meth:`BridgeTask.wait`, the bridge fails.
        """
        self._refuse_if_closed(coroutine)
        task = BridgeTask(self, self._loop.create_task(coroutine))
        self.turn()
        return task

    def call_soon(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Calls ``function`` inside the loop, at once unless this is inside a turn already."""
        self._loop.call_soon(function, *args)
        self.turn()

    @trio.lowlevel.enable_ki_protection
    def turn(self) -> None:
        """Lets the loop do what it has to do now. Never raises; nothing inside a turn or after the end."""
        if self._in_turn:
            return
        self._in_turn = True
        selector = self._selector
        selector.rounds = 0
        selector.end_at = time.monotonic() + _MAX_TURN_SECONDS
        try:
            self._loop.run_forever()
        except BaseException as error:
            # SystemExit and KeyboardInterrupt; what else a callback raises goes to the handler.
            selector.idle_seconds = 0.0
            self._fail(error)
        self._in_turn = False
        if selector.idle_seconds is not None:
            self._arrange_next_turn(selector.idle_seconds)

    def turn_soon(self) -> None:
        """Has a turn taken in trio's next pass: one turn for however many ask in this one."""
        if self._in_turn:
            return
        self._asked = True
        turner = self._turner
        if turner is not None:
            self._turner = None
            trio.lowlevel.reschedule(turner)

    def _arrange_next_turn(self, idle_seconds: float) -> None:
        if idle_seconds == 0:
            self.turn_soon()
            return
        wake_at = trio.current_time() + idle_seconds
        # Only ever earlier: an alarm that is too early costs one empty turn, moving it costs each one.
        if wake_at < self._alarm.deadline:
            self._alarm.deadline = wake_at

    @trio.lowlevel.enable_ki_protection
    async def _drive(self) -> None:
        """Takes a turn whenever a descriptor of the loop is ready or a timer of it is due."""
        with trio.CancelScope(shield=True):
            while not self._closing:
                with trio.CancelScope() as self._alarm:
                    await self._take_turns_on_events()
        self._note_driver_end()

    async def _take_turns_on_events(self) -> None:
        while not self._closing:
            self.turn()
            await trio.lowlevel.wait_readable(self._selector.fileno())

    @trio.lowlevel.enable_ki_protection
    async def _take_asked_turns(self) -> None:
        """Takes the turns that :meth:`turn_soon` asks for: far cheaper than moving the alarm."""
        with trio.CancelScope(shield=True):
            while not self._closing:
                if self._asked:  # by its own last turn, which left work
                    await trio.lowlevel.cancel_shielded_checkpoint()
                else:
                    self._turner = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(_never_abort)
                self._asked = False
                self.turn()
        self._note_driver_end()

    def _note_driver_end(self) -> None:
        self._drivers_left -= 1
        if not self._drivers_left:
            self._drivers_ended.set()

    async def _check_may_start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._refuse_if_closed(coroutine)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            coroutine.close()
            raise

    def _refuse_if_closed(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if self._closed:
            coroutine.close()
            raise BridgeError("the bridge is closed")

    def _note_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._closed:
            loop.default_exception_handler(context)
            return
        about = context.get("task") or context.get("future") or context.get("handle") or ""
        self._fail(context.get("exception") or BridgeError(f"{context['message']} {about}"))

    def _fail(self, error: BaseException) -> None:
        # Through the token: a collected task reports from whatever thread the collector ran in.
        if not any(error is known for known in self._failures):
            self._failures.append(error)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._body.cancel)

    async def _close(self) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_CLOSE_SECONDS):
                for error in await self.run(_end_all_tasks()):
                    self._fail(error)
            for task in asyncio.all_tasks(self._loop):
                self._fail(BridgeError(f"a task ignores its cancellation: {task}"))
            self._closing = True
            self._alarm.deadline = -math.inf
            self.turn_soon()
            await self._drivers_ended.wait()
        self._closed = self._in_turn = True
        self._started.clear()
        self._loop.close()


class _Call(Generic[T]):
    """The wait of one trio task for one task of the loop."""

    __slots__ = ("_bridge", "_parked", "_raise_cancel", "_task", "_waiter")

    def __init__(self, bridge: Bridge, task: asyncio.Task[T]) -> None:
        self._bridge = bridge
        self._task = task
        self._waiter = trio.lowlevel.current_task()
        self._parked = False
        self._raise_cancel: trio.lowlevel.RaiseCancelT | None = None
        task.add_done_callback(self._wake)

    async def outcome(self) -> T:
        """Waits until the task is done; its result, its exception or our cancellation. Once."""
        try:
            await self._wait_done()
            if not self._task.cancelled():
                return self._task.result()
            if self._raise_cancel is not None:
                self._raise_cancel()
            raise BridgeError("the coroutine was cancelled from inside the asyncio loop")
        finally:
            # The frames of its exception lead here, by the turn that raised it: they would keep each other.
            del self._task

    async def _wait_done(self) -> None:
        self._bridge.turn()
        if self._task.done():
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            self._parked = True
            await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _wake(self, _: asyncio.Task[T]) -> None:
        if self._parked:
            trio.lowlevel.reschedule(self._waiter)

    def _abort(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        self._raise_cancel = raise_cancel
        self._task.cancel()
        self._bridge.turn_soon()
        return trio.lowlevel.Abort.FAILED


class _TurnSelector(selectors.EpollSelector):
    """Never blocks; ends the turn when there is nothing to do or the turn was long enough."""

    stop: Callable[[], None]

    def __init__(self) -> None:
        super().__init__()
        self.idle_seconds: float | None = None
        """How long asyncio would sleep now: until its next timer, not at all, or (None) without end."""
        self.rounds = 0
        self.end_at = 0.0
        """Set both when a turn begins."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.rounds += 1
        # With callbacks waiting (0) asyncio only looks in passing: most of these looks find nothing.
        ready = super().select(0) if timeout != 0 or self.rounds % _LOOK_ROUNDS == 0 else []
        if not ready and (timeout is None or timeout > 0):
            self.idle_seconds = timeout
            self.stop()
        elif self.rounds >= _MAX_TURN_ROUNDS or time.monotonic() >= self.end_at:
            self.idle_seconds = 0.0
            self.stop()
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """Deaf after its end: threads of libraries outlive it, and what they have to say is of no more use.

    asyncio raises there. gRPC, whose completion queue is one for all loops of a process, would raise
    that inside the loop that came next.
    """

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if not self.is_closed():
            return super().call_soon_threadsafe(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        handle.cancel()
        return handle


def _never_abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


async def _end_all_tasks() -> list[BaseException]:
    """Cancels every other task of the loop, those started meanwhile too; what they failed with."""
    failures: list[BaseException] = []
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        failures += [error for task in others if not task.cancelled() and (error := task.exception())]
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
    return failures


def _raise_any(failures: list[BaseException], raised: list[BaseException]) -> None:
    """Raises what went wrong, alone where it can be."""
    everything = [*failures, *raised]
    try:
        if len(everything) == 1:
            raise everything[0]
        if everything:
            raise BaseExceptionGroup("the asyncio loop failed", everything)
    finally:
        del everything, failures, raised
