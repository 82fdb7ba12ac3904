"""A local port that leads to a node: many connections, each with its own end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.fakes.scripted_server import FakeServer, echo, fake_server
from tests.support.pki.authority import write_user_bundle
from tunnel_client.access import find_access
from tunnel_client.commands.forward import command_for
from tunnel_client.dial import Dialer, PacedDialer, ServerUnreachable
from tunnel_client.failure_lines import FailureLines
from tunnel_client.forwarding import MAX_CONNECTIONS, connections_for, forward, listen
from tunnel_client.tunnel import TunnelRequest
from tunnel_core.reasons import Reason, Refused


@asynccontextmanager
async def forwarded(
    tmp_path: Path, target: str, reports: list[str] | None = None, max_connections: int = MAX_CONNECTIONS
) -> AsyncIterator[tuple[FakeServer, int]]:
    """A server with a forward to ``target`` on it; yields the server and the local port."""
    async with fake_server(tmp_path) as server, trio.open_nursery() as nursery:
        bundle = write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        dialer: Dialer = find_access(bundle, {}).need_connect()
        listener = await listen("127.0.0.1", 0)
        port = listener.socket.getsockname()[1]
        report = (reports if reports is not None else []).append
        request = TunnelRequest.parse("edge1", target)
        nursery.start_soon(forward, listener, dialer, request, report, max_connections)
        yield server, port
        nursery.cancel_scope.cancel()


async def local(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_megabyte_goes_there_and_back_and_ends(tmp_path: Path) -> None:
    payload = bytes(range(256)) * 4096
    async with forwarded(tmp_path, "7") as (_, port), await local(port) as stream:
        got = bytearray()

        async def send() -> None:
            await stream.send_all(payload)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in stream:
                got += chunk
    assert got == payload


async def test_a_forward_leads_to_a_unix_socket_whose_name_is_not_ascii(tmp_path: Path) -> None:
    async with forwarded(tmp_path, "unix:/tmp/b\u00fccher.sock") as (server, port):
        server.targets["unix:/tmp/b\u00fccher.sock"] = echo
        async with await local(port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"


async def test_connections_do_not_mix(tmp_path: Path) -> None:
    async def talk(port: int, word: bytes) -> None:
        async with await local(port) as stream:
            await stream.send_all(word)
            await stream.send_eof()
            assert b"".join([chunk async for chunk in stream]) == word

    async with forwarded(tmp_path, "7") as (_, port), trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(talk, port, b"%d" % number)


async def test_a_refusal_aborts_the_connection_and_is_reported_while_others_go_on(tmp_path: Path) -> None:
    reports: list[str] = []
    async with forwarded(tmp_path, "9", reports) as (server, port):
        server.targets["localhost:9"] = Refused(Reason.NODE_NOT_ATTACHED, "node edge1 has no agent attached")
        async with await local(port) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        assert reports == ["node edge1 has no agent attached"]
        server.targets["localhost:9"] = server.targets["localhost:7"]
        async with await local(port) as stream:
            await stream.send_all(b"again")
            assert await stream.receive_some() == b"again"


async def test_a_tunnel_that_breaks_is_no_clean_end(tmp_path: Path) -> None:
    async def break_off(stream: trio.abc.HalfCloseableStream, first: bytes) -> None:
        await stream.send_all(b"half of i")
        stream.abort()  # type: ignore[attr-defined]

    async with forwarded(tmp_path, "9") as (server, port):
        server.targets["localhost:9"] = break_off
        async with await local(port) as stream:
            with pytest.raises(trio.BrokenResourceError):
                async for _ in stream:
                    pass


async def test_a_connection_beyond_the_bound_is_reset_at_once_and_reported(tmp_path: Path) -> None:
    reports: list[str] = []
    async with (
        forwarded(tmp_path, "7", reports, max_connections=2) as (server, port),
        await local(port) as first,
        await local(port) as second,
    ):
        for stream in (first, second):
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
        with pytest.raises((trio.BrokenResourceError, OSError)):  # the reset may come during the dial
            async with await local(port) as third:
                await third.receive_some()
        assert reports == ["2 connections are open, the limit (--max-connections); one more was reset"]
        assert len(server.authorities) == 2
        await first.send_eof()
        assert await first.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        async with await local(port) as fourth:
            await fourth.send_all(b"y")
            assert await fourth.receive_some() == b"y"


async def test_dials_are_made_in_small_groups() -> None:
    class CountingDialer:
        name = "the server"
        under_way = most = dialled = 0

        async def dial(self) -> trio.abc.HalfCloseableStream:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            assert self.under_way <= (6 if self.dialled else 4)
            await trio.testing.wait_all_tasks_blocked()
            self.under_way -= 1
            self.dialled += 1
            return trio.testing.memory_stream_pair()[0]

    counting = CountingDialer()
    paced = PacedDialer(counting, 4, 6)
    for most in (6, 6):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(paced.dial)
            await trio.testing.wait_all_tasks_blocked()
        assert counting.most == most
    assert counting.dialled == 40


async def test_a_turn_that_never_comes_is_reported(autojump_clock: trio.testing.MockClock) -> None:
    class SilentDialer:
        name = "the server at x"

        async def dial(self) -> trio.abc.HalfCloseableStream:
            await trio.sleep_forever()
            raise AssertionError("unreachable")

    paced = PacedDialer(SilentDialer(), 1)
    failures: list[str] = []

    async def dial() -> None:
        try:
            await paced.dial()
        except ServerUnreachable as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(dial)
    assert len(failures) == 3 and trio.current_time() >= 30
    assert failures[0].startswith("no connection to the server at x within 30 s")


async def test_many_failures_are_few_lines_and_none_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reports: list[str] = []
    lines = FailureLines(reports.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(40):
            lines.note("dial_refused", f"refused {number}")
        lines.note("unknown_node", "no node edge1")
        assert reports == ["refused 0", "no node edge1"]
        await trio.sleep(1.5)
        assert reports[2:] == ["39 more were reset: refused 39"]
        lines.note("dial_refused", "again")
        await trio.sleep(1)
        lines.note("dial_refused", "and again")
        assert reports[3:] == ["1 more connection was reset: again", "and again"] or reports[3:] == [
            "1 more connection was reset: again"
        ]
        lines.note("dial_refused", "the last")
        nursery.cancel_scope.cancel()
    assert "the last" in reports[-1]


@pytest.mark.parametrize(
    ("descriptors", "wanted", "carried"), [(256, 1024, 112), (524_288, 1024, 1024), (10, 1024, 1)]
)
def test_no_more_is_promised_than_descriptors_carry(descriptors: int, wanted: int, carried: int) -> None:
    assert connections_for(descriptors, wanted) == carried


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    async with await listen("127.0.0.1", 0) as taken:
        with pytest.raises(OSError, match="in use"):
            await listen("127.0.0.1", taken.socket.getsockname()[1])


async def test_it_listens_on_ipv6_too() -> None:
    async with await listen("::1", 0) as listener:
        assert listener.socket.getsockname()[0] == "::1"


@pytest.mark.parametrize(
    ("target", "host", "command"),
    [
        ("22", "127.0.0.1", "ssh -p 5 127.0.0.1"),
        ("web", "127.0.0.1", "curl http://127.0.0.1:5/"),
        ("10250", "::1", "curl -k https://[::1]:5/"),
        ("1883", "0.0.0.0", "nc 127.0.0.1 5"),
        ("db:5432", "::", "psql -h ::1 -p 5"),
    ],
)
def test_the_command_to_paste_fits_the_target(target: str, host: str, command: str) -> None:
    assert command_for(TunnelRequest.parse("edge1", target), host, 5) == command
