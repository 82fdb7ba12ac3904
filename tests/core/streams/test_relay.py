"""One relay: half-close, aborts, read sizes, fairness; on real sockets, TLS and through sessions."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.fakes.memory_link import LinkPair, memory_links
from tests.support.pki import authority as pki
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.reasons import Reason
from tunnel_core.streams.relay import RelayResult, relay
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import SocketTlsStream
from tunnel_core.wire.frames import Payload

PATTERN = bytes(range(251)) * 4177  # a little over 1 MiB, and no power of two


def tcp_pair() -> tuple[SocketStream, SocketStream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return SocketStream(near), SocketStream(far)


def cut(stream: SocketStream) -> None:
    """Reset the socket, as a killed peer's kernel does."""
    stream.abort()


async def fill(stream: SocketStream) -> None:
    """Sends until nothing more is taken for a moment."""
    while True:
        with trio.move_on_after(0.1) as scope:
            await stream.put(b"x" * 64 * KIB)
        if scope.cancelled_caught:
            return


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(65536):
        data += piece
    return bytes(data)


async def is_reset(stream: SocketStream) -> bool:
    """Whether the connection ends with RST. False for a clean end."""
    with trio.fail_after(5):
        try:
            await receive_all(stream)
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            return isinstance(cause, OSError) and cause.errno == errno.ECONNRESET
    return False


@contextmanager
def counted_steps(name: str) -> Iterator[list[str]]:
    """Note each step of a task whose name ends so."""
    steps: list[str] = []

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name.endswith(name):
                steps.append(task.name)

    instrument = Steps()
    trio.lowlevel.add_instrument(instrument)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(instrument)


class Tunnel:
    """user <-> near relay <-> link <-> far relay <-> target: both programs' relays on real sockets."""

    def __init__(self, pair: LinkPair, nursery: trio.Nursery) -> None:
        self.pair = pair
        self.results: dict[str, RelayResult] = {}
        self.scope = trio.CancelScope()
        self._nursery = nursery
        self._over = trio.Event()

    async def begin(self) -> tuple[SocketStream, SocketStream]:
        user, entrance = tcp_pair()
        dialled, target = tcp_pair()
        near, far = await self.pair.streams()
        self._nursery.start_soon(self._relay, "server", entrance, near, Reason.USER_LEFT)
        self._nursery.start_soon(self._relay, "agent", far, dialled, Reason.TARGET_RESET)
        return user, target

    async def _relay(self, side: str, a: trio.abc.Stream, b: trio.abc.Stream, left: Reason) -> None:
        with trio.CancelScope() as scope:
            if side == "server":
                self.scope = scope
            self.results[side] = await relay(a, b, break_reason=left)
        if len(self.results) == 2:
            self._over.set()

    async def wait_over(self, seconds: float = 5) -> dict[str, Reason]:
        with trio.fail_after(seconds):
            await self._over.wait()
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert not self.pair.server.streams and not self.pair.agent.streams
        return {side: result.reason for side, result in self.results.items()}


@asynccontextmanager
async def tunnelled(limits: Limits | None = None) -> AsyncIterator[Tunnel]:
    async with memory_links(limits) as pair, trio.open_nursery() as nursery:
        yield Tunnel(pair, nursery)
        nursery.cancel_scope.cancel()


class TestThroughALink:
    async def test_each_half_ends_by_itself(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await user.send_all(b"question")
            await user.send_eof()
            assert await receive_all(target) == b"question"
            await target.send_all(b"answer")
            await target.send_eof()
            assert await receive_all(user) == b"answer"
            assert await tunnel.wait_over() == {"server": Reason.DONE, "agent": Reason.DONE}
            assert tunnel.results["server"] == RelayResult(8, 6, Reason.DONE)
            user.close_nowait()
            target.close_nowait()

    async def test_small_pieces_need_no_step_of_its_task_also_after_bulk(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()

            async def chat(pieces: int) -> None:
                for _ in range(pieces):
                    for source, sink in ((user, target), (target, user)):
                        await source.send_all(b"key")
                        assert await sink.receive_some() == b"key"

            await chat(20)
            with counted_steps("Tunnel._relay") as steps:
                await chat(20)
            assert steps == []
            for source, sink in ((user, target), (target, user)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(source.send_all, PATTERN)
                    received = 0
                    while received < len(PATTERN):
                        received += len(await sink.receive_some(MIB))
            await chat(20)  # reads become small again
            with counted_steps("Tunnel._relay") as steps:
                await chat(20)
            assert steps == []
            await user.send_eof()
            await target.send_eof()
            assert await tunnel.wait_over() == {"server": Reason.DONE, "agent": Reason.DONE}
            user.close_nowait()
            target.close_nowait()

    async def test_the_target_may_end_first(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await target.send_all(b"banner")
            await target.send_eof()
            assert await receive_all(user) == b"banner"
            await user.send_all(b"late words")
            await user.send_eof()
            assert await receive_all(target) == b"late words"
            assert await tunnel.wait_over() == {"server": Reason.DONE, "agent": Reason.DONE}
            user.close_nowait()
            target.close_nowait()

    async def test_a_reset_of_the_user_reaches_the_target_as_a_reset(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await user.send_all(b"half of")
            assert await target.receive_some() == b"half of"
            cut(user)
            assert await is_reset(target)
            assert set((await tunnel.wait_over()).values()) == {Reason.USER_LEFT}
            target.close_nowait()

    async def test_a_reset_of_the_target_reaches_the_user_as_a_reset(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await target.send_all(b"half of")
            assert await user.receive_some() == b"half of"
            cut(target)
            assert await is_reset(user)
            assert set((await tunnel.wait_over()).values()) == {Reason.TARGET_RESET}
            user.close_nowait()

    async def test_data_sent_by_a_target_before_its_close_arrives_while_the_user_sends(self) -> None:
        content = os.urandom(200 * KIB)
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await target.send_all(content)
            target.close_nowait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            for _ in range(3):
                await user.send_all(b"too late")
                await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(5):
                assert await receive_all(user) == content
            user.close_nowait()
            assert (await tunnel.wait_over(10))["agent"] is Reason.TARGET_RESET

    async def test_a_reset_after_a_half_close_is_still_a_reset(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await user.send_eof()
            assert await target.receive_some() == b""
            await target.send_all(b"half of")
            assert await user.receive_some() == b"half of"
            cut(target)
            assert await is_reset(user)
            await tunnel.wait_over()
            user.close_nowait()

    async def test_cancelled_it_aborts_both_sides(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await user.send_all(b"x")
            assert await target.receive_some() == b"x"
            tunnel.scope.cancel()
            assert await is_reset(user)
            assert await is_reset(target)
            user.close_nowait()
            target.close_nowait()

    async def test_the_end_of_the_session_resets_both_sides(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            tunnel.pair.server.end(Reason.TAKEN_OVER)
            assert await is_reset(user)
            assert await is_reset(target)
            assert set((await tunnel.wait_over()).values()) == {Reason.TAKEN_OVER}
            user.close_nowait()
            target.close_nowait()

    async def test_bulk_both_ways_at_once_arrives_byte_by_byte(self) -> None:
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            sums: dict[str, str] = {}

            async def send(stream: SocketStream) -> None:
                for _ in range(8):
                    await stream.send_all(PATTERN)
                await stream.send_eof()

            async def receive(name: str, stream: SocketStream) -> None:
                sums[name] = hashlib.sha256(await receive_all(stream)).hexdigest()

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for name, stream in (("user", user), ("target", target)):
                        nursery.start_soon(send, stream)
                        nursery.start_soon(receive, name, stream)
            expected = hashlib.sha256(PATTERN * 8).hexdigest()
            assert sums == {"user": expected, "target": expected}
            await tunnel.wait_over()
            result = tunnel.results["agent"]
            assert result == RelayResult(8 * len(PATTERN), 8 * len(PATTERN), Reason.DONE)
            user.close_nowait()
            target.close_nowait()

    async def test_a_side_that_never_reads_stalls_itself_alone(self) -> None:
        limits = Limits(initial_credit=64 * KIB, max_credit=256 * KIB)
        async with tunnelled(limits) as tunnel:
            stalled, endless = await tunnel.begin()
            with trio.move_on_after(0.3):
                while True:
                    await endless.send_all(PATTERN)
            user, target = await tunnel.begin()
            with trio.fail_after(5):
                for _ in range(100):
                    await user.send_all(b"ping")
                    assert await target.receive_some() == b"ping"
                    await target.send_all(b"pong")
                    assert await user.receive_some() == b"pong"
            assert tunnel.pair.server.statistics().credit_granted <= 2 * 256 * KIB + 2 * 64 * KIB
            cut(stalled)  # seen when the next piece is written
            assert await is_reset(endless)
            for stream in (user, target, endless):
                stream.close_nowait()

    async def test_a_reset_is_noticed_while_the_tunnel_takes_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tunnel_core.streams.relay.CHECK_SECONDS", 0.05)
        async with tunnelled(Limits(max_credit=64 * KIB)) as tunnel:
            user, target = await tunnel.begin()
            await fill(user)
            cut(user)
            assert (await tunnel.wait_over())["server"] is Reason.USER_LEFT
            assert await is_reset(target)
            target.close_nowait()

    async def test_a_reset_through_the_tunnel_is_noticed_while_the_user_reads_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tunnel_core.streams.relay.CHECK_SECONDS", 0.05)
        async with tunnelled() as tunnel:
            user, target = await tunnel.begin()
            await fill(target)
            cut(target)
            assert (await tunnel.wait_over())["server"] is Reason.TARGET_RESET
            assert await is_reset(user)
            user.close_nowait()

    async def test_an_end_with_unread_data_before_it_is_delivered_after_it(self) -> None:
        limits = Limits(initial_credit=16 * KIB, max_credit=16 * KIB)
        async with tunnelled(limits) as tunnel:
            user, target = await tunnel.begin()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    await user.send_all(PATTERN)
                    await user.send_eof()

                await trio.testing.wait_all_tasks_blocked(0.01)
                assert await receive_all(target) == PATTERN
            await target.send_eof()
            assert await tunnel.wait_over() == {"server": Reason.DONE, "agent": Reason.DONE}
            user.close_nowait()
            target.close_nowait()

    async def test_a_user_who_wants_no_answer_leaves_no_silent_target_behind(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_links() as pair, trio.open_nursery() as nursery:
            near, far = await pair.streams()
            inner, silent = trio.testing.memory_stream_pair()
            results: list[RelayResult] = []

            over = trio.Event()

            @nursery.start_soon
            async def serve() -> None:
                results.append(await relay(far, inner, break_reason=Reason.TARGET_RESET))
                over.set()

            await near.send_all(b"request")
            await near.aclose()  # graceful: delivered, and nothing is read any more
            assert await receive_all(silent) == b"request"
            with trio.fail_after(60):
                await over.wait()
            assert results[0].reason is Reason.USER_LEFT
            assert not pair.agent.streams


class ChunkStream(trio.abc.HalfCloseableStream):
    """Answers each read in full from an endless or a short supply, and notes the sizes that were asked."""

    def __init__(self, supply: list[int]) -> None:
        self.asked: list[int] = []
        self.written = 0
        self._supply = supply

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        assert max_bytes is not None
        self.asked.append(max_bytes)
        return bytes(min(max_bytes, self._supply.pop(0))) if self._supply else b""

    async def send_all(self, data: Payload) -> None:
        await trio.lowlevel.checkpoint()
        self.written += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class TestReads:
    async def test_reads_grow_for_bulk(self) -> None:
        bulk = ChunkStream([10 * MIB] * 6)
        await relay(bulk, ChunkStream([]))
        assert bulk.asked[:5] == [16 * KIB, 64 * KIB, 256 * KIB, MIB, MIB]

    async def test_reads_stay_small_for_chat(self) -> None:
        chat = ChunkStream([64] * 20)
        await relay(chat, ChunkStream([]))
        assert set(chat.asked) == {16 * KIB}

    async def test_reads_shrink_again(self) -> None:
        mixed = ChunkStream([10 * MIB] * 4 + [64] * 12)
        await relay(mixed, ChunkStream([]))
        assert mixed.asked[4] == MIB
        assert mixed.asked[-1] == 16 * KIB

    async def test_on_sockets_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        user, near = tcp_pair()
        far, target = tcp_pair()
        asked: list[int] = []
        receive_nowait = SocketStream.receive_nowait

        def noted(stream: SocketStream, max_bytes: int) -> bytes | None:
            if stream is near:
                asked.append(max_bytes)
            return receive_nowait(stream, max_bytes)

        monkeypatch.setattr(SocketStream, "receive_nowait", noted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, near, far)
            for _ in range(5):
                await user.send_all(b"chat")
                assert await target.receive_some() == b"chat"
            assert set(asked) == {16 * KIB}

            @nursery.start_soon
            async def send() -> None:
                for _ in range(16):
                    await user.send_all(PATTERN)
                await user.send_eof()

            assert len(await receive_all(target)) == 16 * len(PATTERN)
            await target.send_eof()
        assert max(asked) >= 256 * KIB
        user.close_nowait()
        target.close_nowait()


class TestTime:
    async def test_silence_behind_the_end_of_a_half_ends_it(self, autojump_clock: MockClock) -> None:
        (a, user), (b, target) = trio.testing.memory_stream_pair(), trio.testing.memory_stream_pair()
        await user.send_eof()
        start = trio.current_time()
        result = await relay(a, b, half_closed_seconds=30)
        assert result.reason is Reason.IDLE_TIMEOUT
        assert trio.current_time() - start == pytest.approx(30, abs=0.1)
        await user.aclose()
        await target.aclose()

    async def test_bytes_keep_it(self, autojump_clock: MockClock) -> None:
        (a, user), (b, target) = trio.testing.memory_stream_pair(), trio.testing.memory_stream_pair()
        await user.send_eof()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def speak() -> None:
                for _ in range(10):
                    await trio.sleep(20)
                    await target.send_all(b"x")

            result = await relay(a, b, half_closed_seconds=30)
        assert trio.current_time() - start == pytest.approx(230, abs=5)
        assert result.reason is Reason.IDLE_TIMEOUT
        assert (result.bytes_a_to_b, result.bytes_b_to_a) == (0, 10)

    async def test_bulk_lets_others_run(self) -> None:
        user, near = tcp_pair()
        far, target = tcp_pair()
        waits: list[float] = []

        async def bulk(nursery: trio.Nursery) -> None:
            for _ in range(48):
                await user.send_all(PATTERN)
            nursery.cancel_scope.cancel()

        async def drain() -> None:
            while await target.receive_some(MIB):
                pass

        async def look() -> None:
            while True:
                before = trio.current_time()
                await trio.lowlevel.checkpoint()
                waits.append(trio.current_time() - before)

        async with trio.open_nursery() as nursery:
            for task in (drain, look):
                nursery.start_soon(task)
            nursery.start_soon(relay, near, far)
            await bulk(nursery)
        assert len(waits) > 20
        assert sorted(waits)[len(waits) // 2] < 0.02
        user.close_nowait()
        target.close_nowait()


class TestTls:
    @pytest.fixture
    async def tls(self, tmp_path: Path) -> AsyncIterator[tuple[SocketTlsStream, SocketTlsStream]]:
        leaf = pki.user_leaf("alice")
        chain = tmp_path / "alice.pem"
        chain.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
        context = ssl.create_default_context(cadata=leaf.roots_pem.decode())
        context.load_cert_chain(chain)
        client, server = tcp_pair()
        user = SocketTlsStream(client, context, server_hostname="localhost")
        entrance = SocketTlsStream(server, pki.server_context(tmp_path), server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user.do_handshake)
            nursery.start_soon(entrance.do_handshake)
        yield user, entrance
        user.abort()
        entrance.abort()

    async def test_halves_and_bulk(self, tls: tuple[SocketTlsStream, SocketTlsStream]) -> None:
        user, entrance = tls
        near, target = tcp_pair()
        results: list[RelayResult] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def serve() -> None:
                results.append(await relay(entrance, near))

            @nursery.start_soon
            async def send() -> None:
                await user.send_all(PATTERN)
                await user.send_eof()

            assert await receive_all(target) == PATTERN
            await target.send_all(PATTERN[::-1])
            await target.send_eof()
            assert await receive_all(user) == PATTERN[::-1]
        assert results == [RelayResult(len(PATTERN), len(PATTERN), Reason.DONE)]
        target.close_nowait()

    async def test_an_abortive_end_of_the_target_is_no_end_for_the_user(
        self, tls: tuple[SocketTlsStream, SocketTlsStream]
    ) -> None:
        user, entrance = tls
        near, target = tcp_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, entrance, near)
            await target.send_all(b"half of")
            assert await user.receive_some() == b"half of"
            cut(target)
            with pytest.raises(trio.BrokenResourceError):
                await user.receive_some()

    async def test_a_tls_user_who_vanishes_without_close_notify_resets_the_target(
        self, tls: tuple[SocketTlsStream, SocketTlsStream]
    ) -> None:
        user, entrance = tls
        near, target = tcp_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, entrance, near)
            await user.send_all(b"half of")
            assert await target.receive_some() == b"half of"
            user.transport.close_nowait()  # type: ignore[attr-defined]  # FIN without close_notify
            assert await is_reset(target)
        target.close_nowait()


class TestOwners:
    async def test_an_error_of_the_owner_aborts_both_and_passes(self) -> None:
        user, near = tcp_pair()

        class Faulty(ChunkStream):
            async def receive_some(self, max_bytes: int | None = None) -> bytes:
                await trio.lowlevel.checkpoint()
                raise RuntimeError("a bug")

        with pytest.raises(ExceptionGroup):
            await relay(near, Faulty([]))
        assert await is_reset(user)
        user.close_nowait()
