"""An asyncio loop nested inside trio, through the public interfaces of both.

Theory of operation
1. gRPC's public Python API needs a running asyncio loop; all other code is trio. So the bridge runs the loop
   in *turns*, which never sleep (``turn_loop.py``).
2. Two kinds of task take a turn. The driver is a trio task parked on the selector's epoll descriptor, with
   asyncio's next timer as its deadline. Any trio task that queues work takes a turn too
   (:meth:`Bridge.turn`). Work queued without a turn would wait for unrelated traffic. So every entry to the
   loop is a method of :class:`Bridge` that takes or requests a turn. Callbacks of the loop may reschedule
   trio tasks, start them and set events, because a turn always runs inside a trio task.
3. A turn is bounded in time, so that a busy loop cannot starve trio. Remaining work continues
   in trio's next pass, after every other task had its step.
4. A turn inside a turn does nothing, because the outer turn runs the new work before it ends.
5. A turn never raises into the task that takes it, and defers KeyboardInterrupt (trio delivers it at the main
   task's next checkpoint). The bridge collects failures of the loop, cancels the body of :func:`open_bridge`,
   and raises them when the body has unwound.
6. The driver is shielded and outlives all calls, because a cancelled call needs turns to end. If the driver
   were cancelled beside its callers, they would wait for ever.

The bridge supports no child processes and no signals (trio's handlers stay in place). Threads may use only
asyncio's own ``call_soon_threadsafe``, which wakes the driver through the selector. Linux only, because
another poller must be able to wait on the selector's descriptor. Rejected: trio-asyncio (twice the CPU), trio
as asyncio's guest (a thread hop per wait).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

from tunnel_core.carrier.turn_loop import TurnLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# The longest time that a turn may keep trio waiting, besides the callback that is running. Far below the 30
# ms by which a 10 ms timer may be late, and more than a burst of packets needs.
_MAX_TURN_SECONDS = 0.004
# How long tasks of the loop may take to end after the closing bridge cancelled them.
_CLOSE_SECONDS = 5.0


class BridgeError(Exception):
    """Raised for a failure of the asyncio side that has no exception of its own."""


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Run an asyncio loop beside the body. This must be the outermost scope of a program.

    On exit the bridge cancels the remaining tasks of the loop and waits for them. A failure inside the loop
    cancels the body and is raised alone, or in a ``BaseExceptionGroup`` with other failures and the body's.
    Otherwise the body's own exception passes through unchanged, in no group.
    """
    bridge = Bridge()
    raised: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge._drive)
        nursery.start_soon(bridge._drive_requested_turns)
        try:
            with bridge._body:
                yield bridge
        except BaseException as error:
            raised.append(error)
        await bridge._close()
    _raise_any(bridge._failures, raised)


class BridgeTask:
    """A task of the loop that runs in the background. Made by :meth:`Bridge.start`."""

    def __init__(self, bridge: Bridge, task: asyncio.Task[Any]) -> None:
        self._bridge = bridge
        self._task = task
        self._ended = trio.Event()
        self._waiting = 0
        bridge._started.add(self)
        task.add_done_callback(self._note_end)

    def cancel(self) -> None:
        """Cancel the task without waiting for its end."""
        self._task.cancel()
        self._bridge.turn()

    async def wait(self) -> None:
        """Wait for the task's end and raise its exception, if any. A cancelled task is no error.

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
    """The entry from trio to the loop. Made by :func:`open_bridge`; used from its trio thread only."""

    def __init__(self) -> None:
        self._loop = TurnLoop(self._note_timer)
        self._loop.set_exception_handler(self._note_loop_error)
        self._token = trio.lowlevel.current_trio_token()
        self._failures: list[BaseException] = []
        self._body = trio.CancelScope()
        self._alarm = trio.CancelScope()  # its deadline wakes the driver for asyncio's next timer
        self._parked_turner: trio.lowlevel.Task | None = None  # parked until a turn is requested
        self._turn_requested = False
        self._in_turn = False
        self._closing = False
        self._closed = False
        self._started: set[BridgeTask] = set()  # the loop has weak references only
        self._drivers_left = 2
        self._drivers_ended = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` as a task of the loop. Return its result or raise its exception.

        Cancellation cancels the task and waits for its end. If the task ends with a result nevertheless, that
        result is returned. Raises ``BridgeError`` if the bridge is closed.
        """
        await self._check_can_start(coroutine)
        return await _Call(self, self._loop.create_task(coroutine)).outcome()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> BridgeTask:
        """Start ``coroutine`` as a task of the loop. Raises ``BridgeError`` if the bridge is closed.

        If the task ends with an exception while no caller is in :meth:`BridgeTask.wait`, the bridge fails.
        """
        self._check_open(coroutine)
        task = BridgeTask(self, self._loop.create_task(coroutine))
        self.turn()
        return task

    def call_soon(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call ``function`` inside the loop: at once, or later in the present turn."""
        self._loop.call_soon(function, *args)
        self.turn()

    @trio.lowlevel.enable_ki_protection
    def turn(self) -> None:
        """Run the loop's pending work now. Never raises; does nothing inside a turn or after the end."""
        self._turn()

    def _turn(self, *, for_timers: bool = False) -> None:
        if self._in_turn:
            return
        self._in_turn = True
        loop = self._loop
        try:
            loop.turn(_MAX_TURN_SECONDS, for_timers=for_timers)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt; other exceptions of a callback reach the loop's handler.
            self._turn_requested = True
            self._fail(error)
        self._in_turn = False
        if loop.has_work or self._turn_requested:
            self.turn_soon()

    def turn_soon(self) -> None:
        """Request a turn in trio's next pass. All requests of this pass share one turn."""
        if self._in_turn:
            return
        self._turn_requested = True
        parked = self._parked_turner
        if parked is not None:
            self._parked_turner = None
            trio.lowlevel.reschedule(parked)

    def _note_timer(self, when: float) -> None:
        self._wake_in(when - self._loop.time())

    def _wake_in(self, seconds: float) -> None:
        wake_at = trio.current_time() + seconds
        # Only move the alarm earlier: an early alarm costs one empty turn, moving it back would cost each
        # turn.
        if wake_at < self._alarm.deadline:
            self._alarm.deadline = wake_at

    @trio.lowlevel.enable_ki_protection
    async def _drive(self) -> None:
        """Take a turn whenever a descriptor of the loop is ready or one of its timers is due."""
        with trio.CancelScope(shield=True):
            while not self._closing:
                with trio.CancelScope() as self._alarm:
                    self._turn(for_timers=True)
                    if (seconds := self._loop.next_timer_seconds) is not None:
                        self._wake_in(seconds)
                    await self._take_turns_on_events()
        self._note_driver_end()

    async def _take_turns_on_events(self) -> None:
        while not self._closing:
            await trio.lowlevel.wait_readable(self._loop.descriptor)
            self.turn()

    @trio.lowlevel.enable_ki_protection
    async def _drive_requested_turns(self) -> None:
        """Take the turns that :meth:`turn_soon` requests, which is far cheaper than moving the alarm."""
        with trio.CancelScope(shield=True):
            while not self._closing:
                if self._turn_requested:  # by the last turn of this task, which left work
                    await trio.lowlevel.cancel_shielded_checkpoint()
                else:
                    self._parked_turner = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(_never_abort)
                self._turn_requested = False
                self.turn()
        self._note_driver_end()

    def _note_driver_end(self) -> None:
        self._drivers_left -= 1
        if not self._drivers_left:
            self._drivers_ended.set()

    async def _check_can_start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._check_open(coroutine)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            coroutine.close()
            raise

    def _check_open(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if self._closed:
            coroutine.close()
            raise BridgeError("the bridge is closed")

    def _note_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._closed:
            loop.default_exception_handler(context)
            return
        subject = context.get("task") or context.get("future") or context.get("handle") or ""
        self._fail(context.get("exception") or BridgeError(f"{context['message']} {subject}"))

    def _fail(self, error: BaseException) -> None:
        # Through the token, because a collected task reports from the thread in which the collector ran.
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
    """One trio task that waits for one task of the loop."""

    __slots__ = ("_bridge", "_parked", "_raise_cancel", "_task", "_waiter")

    def __init__(self, bridge: Bridge, task: asyncio.Task[T]) -> None:
        self._bridge = bridge
        self._task = task
        self._waiter = trio.lowlevel.current_task()
        self._parked = False
        self._raise_cancel: trio.lowlevel.RaiseCancelT | None = None
        task.add_done_callback(self._wake)

    async def outcome(self) -> T:
        """Wait until the task is done.

        Return its result, or raise its exception or our cancellation. Call once.
        """
        try:
            await self._wait_done()
            if not self._task.cancelled():
                return self._task.result()
            if self._raise_cancel is not None:
                self._raise_cancel()
            raise BridgeError("the coroutine was cancelled from inside the asyncio loop")
        finally:
            # The exception's frames refer to this one, through the turn that raised it: a reference cycle.
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


def _never_abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


async def _end_all_tasks() -> list[BaseException]:
    """Cancel every other task of the loop, also those started meanwhile. Return their exceptions."""
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
    """Raise a single exception alone, several in a group."""
    everything = [*failures, *raised]
    try:
        if len(everything) == 1:
            raise everything[0]
        if everything:
            raise BaseExceptionGroup("the asyncio loop failed", everything)
    finally:
        del everything, failures, raised
