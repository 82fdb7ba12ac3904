"""Sockets keep trio's contract. A reset is reported as one, and a locally closed socket as closed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing

from tunnel_core.streams.sockets import UNSENT_BYTES, SocketStream

ROOT = Path(__file__).parents[3]
Pair = tuple[SocketStream, SocketStream]
_SIOCOUTQNSD = 0x894B
"""The ioctl of tcp(7)'s kind that returns the bytes which the kernel has not sent yet."""


def unix_pair() -> Pair:
    near, far = socket.socketpair()
    return SocketStream(near), SocketStream(far)


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return SocketStream(near), SocketStream(far)


@pytest.fixture(params=[tcp_pair, unix_pair], ids=["tcp", "unix"])
def make_pair(request: pytest.FixtureRequest) -> Callable[[], Pair]:
    return request.param  # type: ignore[no-any-return]


async def clog(stream: SocketStream) -> None:
    """Sends until the kernel takes no more; over TCP that takes it a moment to know."""
    full = False
    while not full:
        while stream.try_send(b"x" * 65536):
            pass
        with trio.move_on_after(0.02) as scope:
            await stream.wait_writable()
        full = scope.cancelled_caught and not stream.try_send(b"x")


async def test_is_a_half_closeable_stream(make_pair: Callable[[], Pair]) -> None:
    async def pair() -> Pair:
        return make_pair()

    async def clogged() -> Pair:
        ends = make_pair()
        for end in ends:
            end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        for end in ends:
            await clog(end)
        return ends

    await trio.testing.check_half_closeable_stream(pair, clogged)


async def test_the_kernel_accepts_little_for_a_peer_that_reads_nothing() -> None:
    """By default it accepted 4 MiB, which the stream counted as read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        sender = SocketStream(socket.create_connection(listener.getsockname()))
        reader, _ = listener.accept()
    accepted, piece = 0, bytes(64 * 1024)
    with reader:
        while sender.send_nowait(piece):
            accepted += len(piece)
            await trio.lowlevel.checkpoint()
        assert len(piece) <= accepted <= 8 * len(piece)
        unsent = struct.unpack("i", fcntl.ioctl(sender.socket, _SIOCOUTQNSD, bytes(4)))[0]
        assert unsent <= UNSENT_BYTES + len(piece)
        sender.abort()


async def test_a_reader_that_goes_on_gets_all_that_the_kernel_had_refused() -> None:
    near, far = tcp_pair()
    content = os.urandom(3 * 1024 * 1024)
    received = bytearray()

    async def read() -> None:
        async for piece in far:
            received.extend(piece)

    async with trio.open_nursery() as nursery:
        assert not near.send_nowait(content)
        nursery.start_soon(read)
        await near.flush()
        await near.send_eof()
    assert received == content
    near.close_nowait()
    far.close_nowait()


async def test_an_abort_is_a_reset_and_no_end() -> None:
    near, far = tcp_pair()
    await near.send_all(b"half of it")
    assert await far.receive_some() == b"half of it"
    near.abort()
    near.abort()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await far.receive_some()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ECONNRESET
    far.close_nowait()


_A_PROCESS = """
import socket, sys, trio
from tunnel_core.streams.sockets import SocketStream, tune

async def main(kind, host, port):
    if kind == "accepted":
        listener = socket.create_server((host, 0))
        tune(listener)
        print(listener.getsockname()[1], flush=True)
        stream = SocketStream(listener.accept()[0], is_tuned=True)
    else:
        stream = SocketStream(socket.create_connection((host, int(port))))
    await stream.send_all(b"half of it")
    if kind == "ended":
        await stream.send_eof()
    if kind == "closed":
        await stream.aclose()
    print("sent", flush=True)
    sys.stdin.read()

trio.run(main, *sys.argv[1:])
"""


@contextlib.contextmanager
def other_process(kind: str) -> Iterator[tuple[socket.socket, subprocess.Popen[str]]]:
    """A process with a connection to this one, which has sent ten bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        argv = [sys.executable, "-c", _A_PROCESS, kind, "127.0.0.1", str(listener.getsockname()[1])]
        with subprocess.Popen(  # noqa: S603 - our own
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            if kind == "accepted":
                near = socket.create_connection(("127.0.0.1", int(process.stdout.readline())))
            else:
                near, _ = listener.accept()
            with near:
                assert process.stdout.readline() == "sent\n"
                yield near, process


@pytest.mark.parametrize("kind", ["accepted", "dialled", "ended", "closed"])
def test_a_connection_of_a_killed_process_is_reset_unless_it_was_closed(kind: str) -> None:
    """Otherwise the kernel ends the sockets of a killed process with a FIN, which looks complete."""
    with other_process(kind) as (near, process):
        assert near.recv(100) == b"half of it"
        process.kill()
        process.wait()
        if kind == "closed":
            assert near.recv(1) == b""
        elif kind == "ended":  # the end of its own half was true; what we send is lost
            assert near.recv(1) == b""
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                near.sendall(b"x")
        else:
            with pytest.raises(ConnectionResetError):
                near.recv(1)


async def test_sending_to_one_that_aborted_is_broken() -> None:
    near, far = tcp_pair()
    near.abort()
    with pytest.raises(trio.BrokenResourceError):
        await far.put(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await far.finish()
    far.close_nowait()


@pytest.mark.parametrize("waiting", ["receive_some", "wait_readable", "send_all", "wait_writable", "put"])
async def test_a_close_wakes_waiting_tasks(make_pair: Callable[[], Pair], waiting: str) -> None:
    near, far = make_pair()
    await clog(near)
    arguments = [b"x" * 100] if waiting in ("send_all", "put") else []

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(near, waiting)(*arguments)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            near.close_nowait()
    far.close_nowait()


async def test_a_watch_lasts_until_it_is_ended_or_the_socket_is_closed(make_pair: Callable[[], Pair]) -> None:
    near, far = make_pair()
    received: list[bytes | None] = []

    def receive() -> None:
        received.append(near.receive_nowait(100))

    async def send(data: bytes) -> None:
        await far.send_all(data)
        await trio.testing.wait_all_tasks_blocked(0.01)

    assert near.watch(receive)
    await send(b"1")
    await send(b"2")
    assert not near.watch(None)
    await send(b"3")
    assert received == [b"1", b"2"]
    assert near.watch(receive) and near.watch(receive)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert received == [b"1", b"2", b"3"]
    near.close_nowait()
    far.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        near.watch(receive)


async def test_without_epoll_or_descriptors_a_socket_needs_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, "no descriptor left")

    near, far = unix_pair()
    monkeypatch.setattr("tunnel_core.streams.sockets.readiness_of_this_run", refuse)
    assert not near.watch(lambda: None)
    monkeypatch.undo()
    monkeypatch.setattr("tunnel_core.streams.sockets.IS_SUPPORTED", False)
    assert not near.watch(lambda: None)
    near.close_nowait()
    far.close_nowait()


async def test_waiting_for_a_closed_socket_is_an_error_of_its_own() -> None:
    ends = unix_pair()
    for end in ends:
        end.abort()
    for end in ends * 2:
        with pytest.raises(trio.ClosedResourceError):
            await end.wait_readable()
        with pytest.raises(trio.ClosedResourceError):
            await end.wait_writable()
        with pytest.raises(trio.ClosedResourceError):
            end.receive_nowait(1)
        with pytest.raises(trio.ClosedResourceError):
            end.try_send(b"x")


async def test_put_gives_up_the_processor_only_when_the_kernel_is_full(make_pair: Callable[[], Pair]) -> None:
    near, far = make_pair()
    with trio.testing.assert_no_checkpoints():
        await near.put(b"x")
    await clog(near)

    async def drain() -> None:
        while await far.receive_some(65536):
            pass

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(drain)
            await near.put(bytes(3_000_000))
            near.close_nowait()
    far.close_nowait()


async def test_a_cancelled_receive_loses_nothing(make_pair: Callable[[], Pair]) -> None:
    near, far = make_pair()
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(range(250)) * 100)
        while len(received) < 25_000:
            with trio.move_on_after(0):
                received += await far.receive_some(1000)
            with trio.move_on_after(0.01):
                received += await far.receive_some(1000)
    assert bytes(received) == bytes(range(250)) * 100
    near.close_nowait()
    far.close_nowait()


async def test_adopts_the_socket_of_a_stream_of_trios() -> None:
    theirs, other = socket.socketpair()
    trios = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    ours, far = SocketStream.adopt(trios), SocketStream(other)
    await far.send_all(b"x")
    assert await ours.receive_some() == b"x"
    assert trios.socket.fileno() < 0
    ours.close_nowait()
    far.close_nowait()


async def test_tcp_is_set_to_send_at_once_and_to_notice_dead_peers() -> None:
    near, far = tcp_pair()
    assert near.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert near.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    near.close_nowait()
    far.close_nowait()


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
async def test_odd_read_sizes_are_refused(size: int, error: type[Exception]) -> None:
    near, far = unix_pair()
    with pytest.raises(error):
        await near.receive_some(size)
    near.close_nowait()
    far.close_nowait()
