"""What the command does when the server has too many connections: it tries again, and says why it gave up."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle
from tunnel_client import dial as dial_module
from tunnel_client.access import find_access
from tunnel_client.dial import ServerUnreachable, TlsDialer, UnixDialer
from tunnel_core.http.declining import decline_tls
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import relay
from tunnel_core.streams.sockets import SocketStream

Answer = Callable[[SocketStream], Awaitable[None]]


async def overloaded(stream: SocketStream) -> None:
    await decline_tls(stream, Refused(Reason.TOO_MANY_FROM_SOURCE))


async def reset(stream: SocketStream) -> None:
    stream.abort()


@asynccontextmanager
async def busy_for(number: int, answer: Answer, server: FakeServer) -> AsyncIterator[list[int]]:
    """A port before ``server`` whose first connections get ``answer``; yields the port and how many came."""
    seen = [0, 0]

    async def serve(accepted: trio.SocketStream) -> None:
        seen[1] += 1
        near = SocketStream.adopt(accepted)
        try:
            if seen[1] <= number:
                await answer(near)
                return
            far = SocketStream.adopt(await trio.open_tcp_stream("127.0.0.1", server.port))
            await relay(near, far)
        finally:
            near.abort()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        seen[0] = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield seen
        nursery.cancel_scope.cancel()


def dialer_to(folder: Path, port: int) -> TlsDialer:
    dialer = find_access(write_user_bundle(folder / "kim.pem", "kim", f"localhost:{port}"), {}).connect
    assert isinstance(dialer, TlsDialer)
    return dialer


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial_module, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(dial_module, "_BUSY_SECONDS", 0.3)
    monkeypatch.setattr(dial_module, "_RESET_SECONDS", 0.3)


@pytest.mark.parametrize("answer", [overloaded, reset])
async def test_a_busy_server_is_asked_again(tmp_path: Path, answer: Answer) -> None:
    async with fake_server(tmp_path) as server, busy_for(3, answer, server) as seen:
        stream = await dialer_to(tmp_path, seen[0]).dial()
        await trio.aclose_forcefully(stream)
        assert seen[1] == 4


async def test_one_that_stays_busy_is_named(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server, busy_for(999, overloaded, server) as seen:
        with pytest.raises(ServerUnreachable, match="too many unauthenticated connections"):
            await dialer_to(tmp_path, seen[0]).dial()
        assert seen[1] > 2


async def test_a_server_of_another_kind_is_asked_once(tmp_path: Path) -> None:
    async def no_tls(stream: SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
        await stream.receive_some()
        await stream.aclose()

    async with fake_server(tmp_path) as server, busy_for(999, no_tls, server) as seen:
        with pytest.raises(ServerUnreachable, match="wrong version number"):
            await dialer_to(tmp_path, seen[0]).dial()
        assert seen[1] == 1


async def test_a_full_backlog_of_a_unix_socket_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "connect.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        accepted: list[socket.socket] = []
        async with trio.open_nursery() as nursery:

            async def say_hello() -> None:
                stream = await UnixDialer(path).dial()
                await stream.send_all(b"hello")
                await stream.aclose()

            nursery.start_soon(say_hello)
            await trio.sleep(0.1)
            accepted.append(listener.accept()[0])
            listener.setblocking(False)
            await trio.lowlevel.wait_readable(listener)
            accepted.append(listener.accept()[0])
            await trio.lowlevel.wait_readable(accepted[1])
            assert accepted[1].recv(10) == b"hello"
        for one in accepted:
            one.close()
