"""The sleep of a relay's only task while callbacks move its bytes."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel_core.streams.half_closed import CHECK_SECONDS


class RelayWait:
    """One task's wait for its next act. Callbacks of streams call all methods except :meth:`wait`."""

    __slots__ = ("_checks", "_halves_ended", "_is_woken", "_task", "interrupt", "is_over", "was_reset")

    def __init__(self) -> None:
        self.is_over = False
        """Whether both halves have ended, the relay failed, or one task is not enough."""
        self.was_reset = False
        """Whether the tunnelled stream was reset."""
        self.interrupt: Callable[[], object] | None = None
        """Called at the end of the wait, if the task is busy."""
        self._halves_ended = 0
        self._checks: _Checks | None = None  # has an entry for this wait
        self._is_woken = False
        self._task: trio.lowlevel.Task | None = None

    def wake(self) -> None:
        """End the present ``wait``, or the next one at once."""
        self._is_woken = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def end(self) -> None:
        """End the wait for good."""
        self.is_over = True
        if self.interrupt is not None:
            self.interrupt()
        self.wake()

    def end_by_reset(self) -> None:
        """End the wait for good, because the tunnelled stream was reset."""
        self.was_reset = True
        self.end()

    def half_ended(self) -> None:
        """End the wait if both halves have ended; if only one has, in a few seconds.

        A half that goes on beside an ended one needs a watch, and that is a second task.
        """
        self._halves_ended += 1
        if self._halves_ended == 2:
            self.end()
        else:
            self._checks = _checks_of_this_run()
            self._checks.add(self.end)

    def close(self) -> None:
        """Forget what was arranged. No callback may come afterwards."""
        self.interrupt = None
        if self._checks is not None:
            self._checks.remove(self.end)

    async def wait(self) -> None:
        """Wait for ``wake`` or ``end``, and return at once if one came before. Cancellation loses nothing."""
        if not self._is_woken:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._is_woken = False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class _Checks:
    """Functions to call ``CHECK_SECONDS`` after they were added. Nearly all are removed before.

    A deadline of its own would cost each connection a cancel scope, a fifteenth of its CPU.
    """

    def __init__(self) -> None:
        self._due: dict[Callable[[], None], float] = {}  # oldest first
        self._task: trio.lowlevel.Task | None = None  # parked while there is none

    def add(self, function: Callable[[], None]) -> None:
        self._due[function] = trio.current_time() + CHECK_SECONDS
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def remove(self, function: Callable[[], None]) -> None:
        self._due.pop(function, None)

    async def run(self) -> None:
        due = self._due
        while True:
            if not due:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            await trio.sleep_until(next(iter(due.values()), trio.current_time()))
            now = trio.current_time()
            for function in [function for function, at in due.items() if at <= now]:
                if due.pop(function, None) is not None:  # an earlier function may have removed it
                    function()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


_of_this_run: trio.lowlevel.RunVar[_Checks] = trio.lowlevel.RunVar("qanat_relay_checks")


def _checks_of_this_run() -> _Checks:
    try:
        return _of_this_run.get()
    except LookupError:
        checks = _Checks()
        _of_this_run.set(checks)
        trio.lowlevel.spawn_system_task(checks.run)
        return checks
