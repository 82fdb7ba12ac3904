"""The loop of the bridge, turn by turn, without trio."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tunnel_core.carrier.turn_loop import TurnLoop

LONG = 10.0
"""Seconds that no turn of these tests takes."""


class Rounds(TurnLoop):
    """Counts how often asyncio asks for events, and notes what it is told about timers and failures."""

    def __init__(self) -> None:
        self.timers: list[float] = []
        self.failures: list[dict[str, Any]] = []
        super().__init__(self.timers.append)
        self.set_exception_handler(lambda _, context: self.failures.append(context))
        self.runs = 0

    def run_forever(self) -> None:
        self.runs += 1
        super().run_forever()


@pytest.fixture
def loop() -> Iterator[Rounds]:
    made = Rounds()
    yield made
    made.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


Ends = tuple[socket.socket, socket.socket]


def test_an_event_and_the_tasks_that_it_wakes_take_one_run(loop: Rounds, ends: Ends) -> None:
    near, far = ends
    arrived: asyncio.Future[bytes] = loop.create_future()
    steps: list[object] = []

    async def inner() -> bytes:
        return await arrived

    async def outer() -> None:
        steps.append(await asyncio.ensure_future(inner()))
        await asyncio.sleep(0)
        steps.append("slept")

    loop.add_reader(far, lambda: arrived.set_result(far.recv(10)))
    task = loop.create_task(outer())
    loop.turn(LONG)
    assert steps == []
    near.send(b"event")
    loop.runs = 0
    loop.turn(LONG)
    assert steps == [b"event", "slept"] and task.done() and loop.runs == 1 and not loop.has_work


def test_calls_keep_their_order_context_and_cancellation(loop: Rounds) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="outside")
    other = contextvars.Context()
    other.run(name.set, "other")
    called: list[object] = []

    def note(number: int) -> None:
        called.append((number, name.get()))
        if number == 1:
            loop.call_soon(note, 4)
            third.cancel()

    loop.call_soon(note, 1)
    loop.call_soon(note, 2, context=other)
    third = loop.call_soon(note, 3)
    assert not third.cancelled() and "note" in repr(third)
    loop.turn(LONG)
    assert called == [(1, "outside"), (2, "other"), (4, "outside")] and third.cancelled()


def test_an_exception_reaches_the_handler_and_the_other_calls_run(loop: Rounds, ends: Ends) -> None:
    near, far = ends
    error = LookupError("here")
    called: list[str] = []

    def fail() -> None:
        raise error

    loop.call_soon(fail)
    loop.call_soon(called.append, "next")
    loop.add_reader(far, fail)
    near.send(b"x")
    loop.turn(LONG)
    assert [context["exception"] for context in loop.failures] == [error, error] and called == ["next"]
    loop.call_soon(exit)
    with pytest.raises(SystemExit):
        loop.turn(LONG)


def test_readers_are_replaced_and_removed(loop: Rounds, ends: Ends) -> None:
    near, far = ends
    calls: list[str] = []
    loop.add_reader(far, calls.append, "first")
    loop.add_reader(far.fileno(), calls.append, "second")
    near.send(b"x")
    loop.turn(LONG)
    loop.turn(LONG)  # nobody has received the byte
    assert calls == ["second", "second"]
    assert loop.remove_reader(far) and not loop.remove_reader(far)
    loop.turn(LONG)
    assert calls == ["second", "second"]


def test_asyncios_own_transports_work_beside_readers(loop: Rounds, ends: Ends) -> None:
    near, far = ends
    calls: list[str] = []
    watched, other = socket.socketpair()
    received: list[bytes] = []

    async def talk() -> None:
        reader, writer = await asyncio.open_connection(sock=far)
        writer.write(b"greeting")
        received.append(await reader.readexactly(6))
        writer.close()
        await writer.wait_closed()

    with watched, other:
        loop.add_reader(watched, calls.append, "readable")
        task = loop.create_task(talk())
        loop.turn(LONG)
        assert near.recv(100) == b"greeting"
        near.send(b"answer")
        other.send(b"x")
        loop.turn(LONG)
        assert received == [b"answer"] and calls
        loop.turn(LONG)
        assert task.done() and loop.remove_reader(watched)


def test_a_turn_ends_at_its_bound_with_work_left(loop: Rounds) -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        loop.call_soon(again)

    loop.call_soon(again)
    for for_timers in (False, True):
        before = count
        loop.turn(0.001, for_timers=for_timers)
        assert loop.has_work and count > before


def test_timers_are_told_and_found(loop: Rounds) -> None:
    called: list[str] = []
    loop.turn(LONG, for_timers=True)
    assert loop.next_timer_seconds is None
    late = loop.call_later(100, called.append, "late")
    loop.call_later(0, called.append, "due")
    assert loop.timers == [late.when(), pytest.approx(loop.time(), abs=5)]
    loop.turn(LONG, for_timers=True)
    assert called == ["due"] and loop.next_timer_seconds == pytest.approx(100, abs=5)
    late.cancel()
    loop.turn(LONG, for_timers=True)
    assert loop.next_timer_seconds is None


def test_a_timer_that_sets_itself_anew_ends_at_the_bound(loop: Rounds) -> None:
    def again() -> None:
        loop.call_later(0, again)

    again()
    loop.turn(0.001, for_timers=True)
    assert loop.next_timer_seconds == 0
    loop.turn(0.001)


def test_a_due_timer_and_a_thread_continue_tasks_in_the_same_turn(loop: Rounds) -> None:
    done: list[str] = []

    async def sleep() -> None:
        await asyncio.sleep(0)
        await asyncio.wait_for(wake.wait(), LONG)
        done.append("woken")

    wake = asyncio.Event()
    task = loop.create_task(sleep())
    loop.turn(LONG)
    loop.call_soon_threadsafe(wake.set)
    loop.turn(LONG)
    assert done == ["woken"] and task.done()


def test_after_its_end_calls_of_threads_are_ignored_and_nothing_is_removed() -> None:
    near, far = socket.socketpair()
    with near, far:
        loop = Rounds()
        loop.add_reader(far, far.recv, 1)
        loop.close()
        assert loop.call_soon_threadsafe(loop.stop).cancelled()
        assert not loop.remove_reader(far)
