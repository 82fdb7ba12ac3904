"""Standard input and output of every kind, as one stream."""

from __future__ import annotations

import os
import pty
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tunnel_client.stdio import StdioStream, ThreadedReader, ThreadedWriter, join_descriptors
from tunnel_core.streams.sockets import SocketStream

BINARY = bytes(range(256)) * 1024


async def all_of(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


def pipe_pair() -> tuple[StdioStream, StdioStream]:
    (a_reads, b_writes), (b_reads, a_writes) = os.pipe(), os.pipe()
    a, b = join_descriptors(a_reads, a_writes), join_descriptors(b_reads, b_writes)
    assert isinstance(a, StdioStream)
    assert isinstance(b, StdioStream)
    return a, b


async def test_pipes_keep_trios_contract() -> None:
    async def make() -> tuple[StdioStream, StdioStream]:
        return pipe_pair()

    async def make_clogged() -> tuple[StdioStream, StdioStream]:
        a, b = pipe_pair()
        # More than a pipe holds: once all tasks are blocked, both writers stand.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send_all, bytes(1024 * 1024))
            nursery.start_soon(b.send_all, bytes(1024 * 1024))
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        return a, b

    await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_a_reader_that_left_is_noticed_behind_the_end_of_the_input() -> None:
    """``qanat connect`` meets this when ssh has ended and the target is silent."""
    user, ours = pipe_pair()
    async with ours:
        await user.aclose()
        assert await ours.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            ours.check_peer()


async def test_a_reader_that_waits_is_not_disturbed() -> None:
    user, ours = pipe_pair()
    async with user, ours:
        ours.check_peer()
        await ours.send_eof()
        ours.check_peer()


async def test_regular_files_are_read_and_written_whole(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(BINARY)
    reading = os.open(tmp_path / "in", os.O_RDONLY)
    writing = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    async with join_descriptors(reading, writing) as stream:
        await stream.send_all(await all_of(stream))
        await stream.send_eof()
    assert (tmp_path / "out").read_bytes() == BINARY
    for descriptor in (reading, writing):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)


async def test_dev_null_is_an_empty_input() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    async with join_descriptors(null, os.dup(null)) as stream:
        await stream.send_all(BINARY)
        assert await stream.receive_some() == b""


async def test_one_socket_for_both_is_shut_down_not_closed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        descriptor = ours.detach()
        async with join_descriptors(descriptor, os.dup(descriptor)) as stream:
            assert isinstance(stream, SocketStream)
            await stream.send_all(b"question")
            await stream.send_eof()
            assert theirs.recv(100) == b"question"
            assert theirs.recv(100) == b""
            theirs.sendall(b"answer")
            assert await stream.receive_some() == b"answer"


async def test_closing_the_output_ends_it_for_its_reader() -> None:
    (_, unused), (reads, writes) = os.pipe(), os.pipe()
    os.close(unused)
    async with join_descriptors(_, writes) as stream:
        await stream.send_all(b"x")
        await stream.send_eof()
        assert os.read(reads, 10) == b"x"
        assert os.read(reads, 10) == b""
    os.close(reads)


async def test_a_terminal_stops_being_read_when_the_far_side_ended() -> None:
    master, terminal = pty.openpty()
    stream = join_descriptors(terminal, os.dup(terminal))
    os.write(master, b"hello\n")
    assert await stream.receive_some() == b"hello\n"
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            ended = []

            async def read() -> None:
                ended.append(await stream.receive_some())

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_eof()
    assert ended == [b""]
    assert await stream.receive_some() == b""
    os.write(master, b"\n")  # lets the abandoned thread go
    await stream.aclose()
    os.close(master)


async def test_a_failing_standard_stream_is_named() -> None:
    reads, writes = os.pipe()
    wrong_reader, wrong_writer = ThreadedReader(writes), ThreadedWriter(reads)
    with pytest.raises(trio.BrokenResourceError, match="standard input: Bad file descriptor"):
        await wrong_reader.receive_some()
    with pytest.raises(trio.BrokenResourceError, match="standard output: Bad file descriptor"):
        await wrong_writer.send_all(b"x")
    await wrong_reader.aclose()
    await wrong_writer.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await wrong_reader.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await wrong_writer.send_all(b"x")
