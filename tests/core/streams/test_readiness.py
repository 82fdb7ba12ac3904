"""Functions that are called when sockets are readable."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tunnel_core.streams.readiness import readiness_of_this_run


def watch(descriptor: int, function: Callable[[], None]) -> None:
    readiness_of_this_run().watch(descriptor, function)


def unwatch(descriptor: int) -> None:
    readiness_of_this_run().unwatch(descriptor)


wait_quiet = trio.testing.wait_all_tasks_blocked


@contextmanager
def pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Pairs of connected sockets; the watch of the second of each pair is ended before its close."""
    made = [socket.socketpair() for _ in range(count)]
    try:
        yield made
    finally:
        for near, far in made:
            near.close()
            if far.fileno() >= 0:
                unwatch(far.fileno())
                far.close()


async def called(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_each_socket_calls_its_own_function() -> None:
    with pairs(200) as ends:  # more than one pass calls
        received: dict[int, bytes] = {}

        def reader(number: int, sock: socket.socket) -> Callable[[], None]:
            def read() -> None:
                received[number] = received.get(number, b"") + sock.recv(100)

            return read

        for number, (_, far) in enumerate(ends):
            watch(far.fileno(), reader(number, far))
        sent = 0
        for _ in range(2):
            for number, (near, _far) in enumerate(ends):
                sent += near.send(b"%d;" % number)
            while sum(map(len, received.values())) < sent:
                await trio.lowlevel.checkpoint()
        assert received == {number: b"%d;" % number * 2 for number in range(200)}


async def test_bytes_that_are_left_bring_another_call_and_other_tasks_run_between() -> None:
    with pairs(1) as [(near, far)]:
        received: list[bytes] = []
        watch(far.fileno(), lambda: received.append(far.recv(1)))
        near.sendall(b"abc")
        passes = 0
        with trio.fail_after(5):
            while len(received) < 3:
                passes += 1
                await trio.lowlevel.checkpoint()
        assert received == [b"a", b"b", b"c"] and passes >= 3


async def test_the_end_and_a_broken_connection_bring_a_call() -> None:
    with pairs(1) as [(near, far)]:
        ends: list[bytes] = []

        def read() -> None:
            ends.append(far.recv(1))
            unwatch(far.fileno())

        watch(far.fileno(), read)
        near.close()
        await called(lambda: bool(ends))
        await wait_quiet()
        assert ends == [b""]


async def test_a_function_may_end_the_watch_of_another_that_is_due() -> None:
    with pairs(2) as ends:
        called_for: list[int] = []

        def end_both(number: int) -> Callable[[], None]:
            def end() -> None:
                called_for.append(number)
                for _, far in ends:
                    unwatch(far.fileno())
                    unwatch(far.fileno())

            return end

        for number, (near, far) in enumerate(ends):
            watch(far.fileno(), end_both(number))
            near.sendall(b"x")
        await called(lambda: bool(called_for))
        await wait_quiet()
        assert len(called_for) == 1


async def test_a_descriptor_that_is_used_again_has_only_its_new_function() -> None:
    calls: list[str] = []
    with pairs(2) as [(near, far), (_, closed)]:
        number = closed.fileno()
        watch(number, lambda: calls.append("old"))
        unwatch(number)
        closed.close()
        os.dup2(far.fileno(), number)
        try:
            watch(number, lambda: calls.append(far.recv(1).decode()))
            near.sendall(b"n")
            await called(lambda: bool(calls))
            assert calls == ["n"]
        finally:
            unwatch(number)
            os.close(number)


def test_each_run_has_its_own_and_closes_it() -> None:
    async def main() -> None:
        with pairs(1) as [(near, far)]:
            calls: list[bytes] = []
            watch(far.fileno(), lambda: calls.append(far.recv(1)))
            near.sendall(b"x")
            await called(lambda: bool(calls))

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    open_before = descriptors()
    for _ in range(2):
        trio.run(main)
    assert descriptors() == open_before


@pytest.mark.parametrize("times", [1, 2])
async def test_ending_a_watch_is_idempotent(times: int) -> None:
    with pairs(1) as [(_, far)]:
        watch(far.fileno(), lambda: None)
        for _ in range(times):
            unwatch(far.fileno())
