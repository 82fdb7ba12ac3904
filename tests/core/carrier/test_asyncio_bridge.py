from __future__ import annotations

import asyncio
import gc
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from tunnel_core.carrier.asyncio_bridge import Bridge, BridgeError, open_bridge


async def _asyncio_sleep(seconds: float, answer: str = "slept") -> str:
    await asyncio.sleep(seconds)
    return answer


async def _fail(error: BaseException, after_seconds: float = 0) -> None:
    await asyncio.sleep(after_seconds)
    raise error


class TestRun:
    async def test_returns_the_result(self) -> None:
        async with open_bridge() as bridge:
            assert await bridge.run(_asyncio_sleep(0.001, "here")) == "here"

    async def test_many_at_once(self) -> None:
        answers = []

        async def ask(number: int) -> None:
            answers.append(await bridge.run(_asyncio_sleep(0.001 * (number % 7), str(number))))

        async with open_bridge() as bridge, trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)
        assert sorted(map(int, answers)) == list(range(200))

    async def test_raises_what_the_coroutine_raised_to_the_caller_alone(self) -> None:
        async with open_bridge() as bridge:
            with pytest.raises(LookupError, match="here"):
                await bridge.run(_fail(LookupError("here")))
            assert await bridge.run(_asyncio_sleep(0)) == "slept"

    async def test_is_a_checkpoint_and_a_cancel_point(self) -> None:
        async def nothing() -> None:
            pass

        async with open_bridge() as bridge:
            with trio.testing.assert_checkpoints():
                await bridge.run(nothing())
            with trio.CancelScope() as scope:
                scope.cancel()
                await bridge.run(nothing())
            assert scope.cancelled_caught

    async def test_cancelled_cancels_the_task_and_waits_for_its_end(self) -> None:
        ended = []

        async def slow_to_end() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.02)
                ended.append(True)

        async with open_bridge() as bridge:
            with trio.move_on_after(0.01) as scope:
                await bridge.run(slow_to_end())
            assert ended == [True]
            assert scope.cancelled_caught

    async def test_a_result_that_beats_the_cancellation_is_not_lost(self) -> None:
        async def stubborn() -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "rescued"
            return "never"

        async with open_bridge() as bridge:
            with trio.move_on_after(0.01):
                assert await bridge.run(stubborn()) == "rescued"

    async def test_cancelled_from_inside_the_loop_is_an_error_not_a_trio_cancellation(self) -> None:
        async with open_bridge() as bridge:
            with pytest.raises(BridgeError, match="cancelled from inside"):
                await bridge.run(_fail(asyncio.CancelledError()))

    async def test_keeps_no_reference_to_a_failed_task(self) -> None:
        class Big:
            pass

        async def hold() -> None:
            big = Big()
            held.append(id(big))
            await asyncio.sleep(0)
            raise LookupError

        held: list[int] = []
        async with open_bridge() as bridge:
            gc.collect()
            gc.disable()
            try:
                with pytest.raises(LookupError):
                    await bridge.run(hold())
                # pytest's own record of the exception went with the block above.
                assert not [thing for thing in gc.get_objects() if isinstance(thing, Big)]
            finally:
                gc.enable()

    async def test_after_the_end_is_refused(self) -> None:
        async with open_bridge() as bridge:
            pass
        with pytest.raises(BridgeError, match="closed"):
            await bridge.run(_asyncio_sleep(0))
        bridge.turn()
        bridge.turn_soon()


class TestTurns:
    async def test_call_soon_runs_at_once(self) -> None:
        seen: list[int] = []
        async with open_bridge() as bridge:
            bridge.call_soon(seen.append, 1)
            assert seen == [1]

    async def test_a_turn_inside_a_turn_does_nothing_and_loses_nothing(self) -> None:
        seen: list[str] = []

        def outer() -> None:
            bridge.call_soon(seen.append, "inner")
            bridge.turn()
            bridge.turn_soon()
            seen.append("outer")

        async with open_bridge() as bridge:
            bridge.call_soon(outer)
            assert seen == ["outer", "inner"]

    async def test_turn_soon_waits_for_the_next_pass(self) -> None:
        async def park() -> None:
            futures.append(asyncio.get_running_loop().create_future())
            seen.append(await futures[0])

        futures: list[asyncio.Future[str]] = []
        seen: list[str] = []
        async with open_bridge() as bridge:
            await trio.testing.wait_all_tasks_blocked()
            bridge.start(park())
            futures[0].set_result("woken")
            bridge.turn_soon()
            bridge.turn_soon()
            assert not seen
            await trio.testing.wait_all_tasks_blocked()
            assert seen == ["woken"]

    async def test_a_callback_may_reschedule_and_start_trio_tasks(self) -> None:
        async with open_bridge() as bridge, trio.open_nursery() as nursery:
            event = trio.Event()
            started = trio.Event()

            async def set_started() -> None:
                started.set()

            bridge.call_soon(event.set)
            bridge.call_soon(nursery.start_soon, set_started)
            with trio.fail_after(1):
                await event.wait()
                await started.wait()

    async def test_a_turn_is_bounded(self) -> None:
        async def spin(step_seconds: float) -> None:
            while True:
                busy_until = time.perf_counter() + step_seconds
                while time.perf_counter() < busy_until:
                    pass
                await asyncio.sleep(0)

        async with open_bridge() as bridge:
            for step_seconds in (0.0, 0.001):
                started = time.perf_counter()
                task = bridge.start(spin(step_seconds))
                assert time.perf_counter() - started < 0.5
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                task.cancel()
                await task.wait()

    async def test_work_beyond_a_bounded_turn_continues_without_another_event(self) -> None:
        async def work(rounds: int) -> None:
            for _ in range(rounds):
                await asyncio.sleep(0)

        async with open_bridge() as bridge:
            with trio.fail_after(5):
                await bridge.run(work(10_000))

    async def test_descriptors_of_the_loop_wake_it(self) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                writer.write(data)
            writer.close()

        async with open_bridge() as bridge:
            server = await bridge.run(asyncio.start_server(echo, "127.0.0.1", 0))
            port = server.sockets[0].getsockname()[1]
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                for number in range(50):
                    await stream.send_all(b"%d" % number)
                    assert await stream.receive_some() == b"%d" % number
            bridge.call_soon(server.close)

    async def test_threads_wake_it(self) -> None:
        async with open_bridge() as bridge:
            assert await bridge.run(asyncio.to_thread(lambda: "from a thread")) == "from a thread"


class TestFailures:
    async def test_an_exception_in_a_callback_cancels_the_body_and_is_raised(self) -> None:
        with pytest.raises(ZeroDivisionError):
            async with open_bridge() as bridge:
                bridge.call_soon(lambda: 1 / 0)  # does not raise here
                await trio.sleep(60)

    @pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit("x"), BaseException("x")])
    async def test_so_is_any_base_exception(self, error: BaseException) -> None:
        def fail() -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            async with open_bridge() as bridge:
                bridge.call_soon(fail)
                await trio.sleep(60)
        assert caught.value is error

    async def test_calls_still_end_after_a_failure(self) -> None:
        ended = []

        async def needs_turns() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                ended.append(True)

        with pytest.raises(ZeroDivisionError):
            async with open_bridge() as bridge, trio.open_nursery() as nursery:
                nursery.start_soon(bridge.run, needs_turns())
                await trio.testing.wait_all_tasks_blocked()
                bridge.call_soon(lambda: 1 / 0)
        assert ended == [True]

    async def test_several_are_raised_together(self) -> None:
        def fail(error: Exception) -> None:
            raise error

        with pytest.raises(BaseExceptionGroup) as caught:
            async with open_bridge() as bridge:
                bridge.call_soon(fail, LookupError())
                bridge.call_soon(fail, OSError())
                raise ValueError
        assert [type(error) for error in caught.value.exceptions] == [LookupError, OSError, ValueError]

    async def test_the_exception_of_the_body_passes_as_it_is(self) -> None:
        with pytest.raises(LookupError, match="body"):
            async with open_bridge():
                raise LookupError("body")

    async def test_an_exception_of_a_forgotten_future_is_raised(self) -> None:
        def forget() -> None:
            asyncio.get_running_loop().create_future().set_exception(LookupError("forgotten"))

        with pytest.raises(LookupError, match="forgotten"):
            async with open_bridge() as bridge:
                bridge.call_soon(forget)
                gc.collect()
                await trio.sleep(60)

    async def test_an_exception_of_a_task_while_the_bridge_closes_is_raised(self) -> None:
        async def fail_when_cancelled() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                raise LookupError("late")

        with pytest.raises(LookupError, match="late"):
            async with open_bridge() as bridge:
                bridge.start(fail_when_cancelled())


class TestStart:
    async def test_wait_raises_the_exception_and_the_bridge_goes_on(self) -> None:
        async with open_bridge() as bridge:
            task = bridge.start(_fail(LookupError("awaited"), after_seconds=0.01))
            with pytest.raises(LookupError, match="awaited"):
                await task.wait()

    async def test_an_exception_of_an_unawaited_task_fails_the_bridge(self) -> None:
        with pytest.raises(LookupError, match="alone"):
            async with open_bridge() as bridge:
                bridge.start(_fail(LookupError("alone"), after_seconds=0.01))
                await trio.sleep(60)

    async def test_cancel_and_wait(self) -> None:
        async with open_bridge() as bridge:
            task = bridge.start(_asyncio_sleep(60))
            task.cancel()
            await task.wait()
            await task.wait()

    async def test_a_cancelled_wait_leaves_the_task_running(self) -> None:
        async with open_bridge() as bridge:
            task = bridge.start(_asyncio_sleep(0.05))
            with trio.move_on_after(0.01) as scope:
                await task.wait()
            assert scope.cancelled_caught
            await task.wait()


class TestEnd:
    async def test_no_task_is_left(self) -> None:
        ended = []

        async def start_another_when_cancelled() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("first")
                asyncio.create_task(last())  # noqa: RUF006 - the bridge must find it without a reference

        async def last() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("second")

        async with open_bridge() as bridge:
            bridge.start(start_another_when_cancelled())
        assert ended == ["first", "second"]

    async def test_no_descriptor_is_left(self) -> None:
        before = _descriptors()
        for _ in range(5):
            async with open_bridge() as bridge:
                await bridge.run(_asyncio_sleep(0))
        assert _descriptors() == before

    async def test_everything_cancelled_at_once_during_a_blocked_write(self) -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        blocked = 0
        everything = trio.CancelScope()

        async def write_until_blocked() -> None:
            nonlocal blocked
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(bytes(32 << 20))
                blocked += 1
                if blocked == 20:
                    everything.cancel()
                await writer.drain()
            finally:
                blocked -= 1
                writer.transport.abort()

        with trio.fail_after(5):
            with everything:
                async with open_bridge() as bridge, trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(bridge.run, write_until_blocked())
            assert everything.cancelled_caught
            assert blocked == 0
            await listener.aclose()


def _descriptors() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def _percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def _lateness(sleep: Callable[[float], Awaitable[object]]) -> float:
    """How late a 10 ms timer fires, in seconds: p99, of the best of six as other work runs beside."""
    late = 1.0
    for _ in range(6):
        late = min(late, await _lateness_once(sleep))
        if late < 0.03:
            break
    return late


async def _lateness_once(sleep: Callable[[float], Awaitable[object]]) -> float:
    late = []
    for _ in range(100):
        started = time.perf_counter()
        await sleep(0.01)
        late.append(time.perf_counter() - started - 0.01)
    return _percentile_99(late)


class TestFairness:
    async def test_a_busy_loop_leaves_trio_its_timers(self) -> None:
        async with open_bridge() as bridge:
            for _ in range(3):
                bridge.start(_spin())
            assert await _lateness(trio.sleep) < 0.03

    async def test_a_busy_trio_leaves_the_loop_its_timers(self) -> None:
        async def spin() -> None:
            while True:
                await trio.lowlevel.checkpoint()

        async with open_bridge() as bridge, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(spin)
            assert await bridge.run(_lateness(asyncio.sleep)) < 0.03
            nursery.cancel_scope.cancel()


async def _spin() -> None:
    pass_on = asyncio.sleep
    while True:
        await pass_on(0)


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


class TestSignals:
    """Ctrl-C needs a trio run of its own: pytest-trio's takes it for itself."""

    @pytest.fixture(autouse=True)
    def default_handler(self) -> Iterator[None]:
        """A shell that starts tests in the background has them ignore Ctrl-C."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_ctrl_c_inside_a_turn_reaches_the_main_task_at_its_checkpoint(self) -> None:
        seen = []

        def interrupted_callback() -> None:
            _interrupt()
            seen.append("callback went on")

        async def main() -> None:
            async with open_bridge() as bridge:
                bridge.call_soon(interrupted_callback)
                seen.append("turn did not raise")
                await trio.sleep(60)

        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
        assert seen == ["callback went on", "turn did not raise"]

    def test_ctrl_c_during_a_call(self) -> None:
        ended = []

        async def call() -> None:
            asyncio.get_running_loop().call_later(0.01, _interrupt)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                ended.append(True)

        async def main() -> None:
            async with open_bridge() as bridge:
                await bridge.run(call())

        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
        assert ended == [True]

    async def test_other_signals_reach_trio_while_the_loop_is_busy(self) -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals, trio.fail_after(2):
            async with open_bridge() as bridge:
                task = bridge.start(_spin())
                os.kill(os.getpid(), signal.SIGUSR1)
                async for number in signals:
                    assert number == signal.SIGUSR1
                    break
                task.cancel()


async def test_a_task_that_ignores_its_cancellation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if bridge_is_over:
                    raise

    bridge_is_over = False
    monkeypatch.setattr("tunnel_core.carrier.asyncio_bridge._CLOSE_SECONDS", 0.05)
    bridge: Bridge
    with pytest.raises(BridgeError, match="deaf"):
        async with open_bridge() as bridge:
            bridge.start(deaf())
    bridge_is_over = True
    gc.collect()
