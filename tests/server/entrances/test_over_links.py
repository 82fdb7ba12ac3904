"""The entrances over real sessions (with mux and streams; the carrier is in memory)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
import trio
import trio.testing

from tests.support.fakes.edge import TRUST_DOMAIN, Edge, open_edge, receive_all, receive_until
from tests.support.fakes.memory_carrier import MemoryCarrier
from tests.support.fakes.memory_link import LinkPair, memory_links
from tests.support.fakes.streams import wait_reset
from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_core.streams.sockets import RESET_ON_CLOSE
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.wire.codec import decode_packet
from tunnel_core.wire.frames import Data, Open, Packet
from tunnel_server.auth.users import User
from tunnel_server.entrances.tcp import TcpEntrance, TcpForward
from tunnel_server.listeners.listener import AcceptedConnection

AgentTask = Callable[[TunnelStream], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nHost: web--edge1.localhost\r\n\r\n"
CONNECT = b"CONNECT edge1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@asynccontextmanager
async def linked(agent: AgentTask) -> AsyncIterator[tuple[Edge, LinkPair]]:
    """Yield an edge whose node edge1 has a real session; ``agent`` serves each stream."""
    async with memory_links() as pair, open_edge() as edge:

        async def serve_opened() -> None:
            async for stream in pair.opened:
                edge.nursery.start_soon(agent, stream)

        edge.nursery.start_soon(serve_opened)
        edge.nodes.attach("edge1", pair.server)
        yield edge, pair


async def connect(edge: Edge) -> trio.SocketStream:
    def identify(accepted: AcceptedConnection) -> User:
        return User("alice", Role.USER, TRUST_DOMAIN)

    https_entrance = edge.https_entrance(identify, edge.connect())
    return await edge.dial(await edge.listen("https", https_entrance.serve))


async def bind(edge: Edge) -> trio.SocketStream:
    forward = TcpForward("127.0.0.1:0", "edge1", Target.parse("web"), (ip_network("127.0.0.0/8"),))
    return await edge.dial(await edge.listen("tcp", TcpEntrance(edge.opener, forward).serve))


async def browse(edge: Edge) -> trio.SocketStream:
    web = edge.web()
    return await edge.dial(await edge.listen("web", web.serve))


async def echo(stream: TunnelStream) -> None:
    stream.accept("127.0.0.1:22")
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.send_eof()
    await stream.aclose()


async def test_connect_carries_bulk_and_half_close() -> None:
    async with linked(echo) as (edge, pair):
        user = await connect(edge)
        await user.send_all(CONNECT)
        await receive_until(user, b"\r\n\r\n")
        received = 0

        async def receive() -> None:
            nonlocal received
            received = len(await receive_all(user))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(40):
                await user.send_all(bytes(100_000))
            await user.send_eof()
        assert received == 4_000_000
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.closed_streams == {("connect", "done"): 1}
        assert not pair.server.streams


NOT_A_NODES = [Reason.DONE, Reason.UNAUTHENTICATED, Reason.REVOKED, Reason.TOKEN_WRONG, Reason.STORE_FULL]


@pytest.mark.parametrize("reason", NOT_A_NODES)
async def test_a_reason_that_is_not_a_nodes_to_give_is_a_failed_dial(
    reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(stream: TunnelStream) -> None:
        stream.refuse(reason, "come in")

    async with linked(refuse) as (edge, _):
        user = await connect(edge)
        await user.send_all(CONNECT)
        answer = await receive_all(user)
        assert answer.startswith(
            f"HTTP/1.1 502 the agent refused the stream with the reason {reason.word}".encode()
        )
        browser = await browse(edge)
        await browser.send_all(GET)
        assert (await receive_until(browser, b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
        assert edge.counters.refusals["connect", "dial_failed"] == 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("reason", NOT_A_NODES)
@pytest.mark.parametrize("accepts", [False, True])
async def test_a_reset_or_a_bye_for_such_a_reason_is_a_502(
    reason: Reason, accepts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def reset(stream: TunnelStream) -> None:
        if accepts:
            stream.accept("127.0.0.1:80")
            stream.reset(reason)
        else:
            pair.agent.end(reason)

    async with linked(reset) as (edge, pair):
        browser = await browse(edge)
        await browser.send_all(GET)
        assert (await receive_until(browser, b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
        if not accepts:
            assert pair.server.ended is not None and pair.server.ended[0] is Reason.SESSION_LOST
    assert "Traceback" not in caplog.text


async def test_a_refusal_reaches_the_user_unchanged() -> None:
    async def refuse(stream: TunnelStream) -> None:
        stream.refuse(Reason.TARGET_NOT_ALLOWED, "add localhost:22 to allow in agent.toml of edge1")

    async with linked(refuse) as (edge, pair):
        user = await connect(edge)
        await user.send_all(CONNECT)
        answer = await receive_all(user)
        assert answer.startswith(b"HTTP/1.1 403 add localhost:22 to allow in agent.toml of edge1\r\n")
        browser = await browse(edge)
        await browser.send_all(GET)
        assert (await receive_all(browser)).startswith(b"HTTP/1.1 403 add localhost:22")
        await trio.testing.wait_all_tasks_blocked()
        assert not pair.server.streams
        assert sum(edge.counters.open_streams.values()) == 0


async def test_a_user_who_leaves_during_the_dial_resets_it_at_the_agent() -> None:
    left: list[Reason] = []
    done = trio.Event()

    async def never(stream: TunnelStream) -> None:
        left.append(await wait_reset(stream))
        stream.reset(Reason.USER_LEFT)
        done.set()

    async with linked(never) as (edge, pair):
        user = await connect(edge)
        await user.send_all(CONNECT)
        while not pair.agent.streams:  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.001)
        user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        await user.aclose()
        await done.wait()
        assert left == [Reason.USER_LEFT]
        await trio.testing.wait_all_tasks_blocked()
        assert not pair.server.streams


async def test_the_request_travels_with_the_open() -> None:
    async def answer(stream: TunnelStream) -> None:
        stream.accept("127.0.0.1:80")
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(OK)

    async with linked(answer) as (edge, pair):
        browser = await browse(edge)
        await browser.send_all(GET)
        await receive_until(browser, b"hi")
        carrier = pair.carriers[0]
        assert isinstance(carrier, MemoryCarrier)
        opening = [packet for packet in map(decode_packet, carrier.packets) if has_open(packet)]
        assert any(isinstance(frame, Data) or early(frame) for frame in opening[0].frames)


def has_open(packet: object) -> bool:
    return isinstance(packet, Packet) and any(isinstance(frame, Open) for frame in packet.frames)


def early(frame: object) -> bool:
    return isinstance(frame, Open) and bool(frame.early_data)


async def test_a_websocket_over_a_link() -> None:
    async def socket(stream: TunnelStream) -> None:
        stream.accept("127.0.0.1:80")
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst"
        )
        async for chunk in stream:
            await stream.send_all(chunk)
        await stream.aclose()

    async with linked(socket) as (edge, _):
        browser = await browse(edge)
        await browser.send_all(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await receive_until(browser, b"first")).startswith(b"HTTP/1.1 101 ")
        await browser.send_all(b"frame")
        assert await receive_until(browser, b"frame") == b"frame"


async def test_a_lost_link_resets_a_bound_port_and_answers_a_browser_with_502() -> None:
    async def hold(stream: TunnelStream) -> None:
        stream.accept("127.0.0.1:80")
        await wait_reset(stream)

    async with linked(hold) as (edge, pair):
        user, browser = await bind(edge), await browse(edge)
        await user.send_all(b"x")
        await browser.send_all(GET)
        while len(pair.agent.streams) < 2:  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.001)
        carrier = pair.carriers[0]
        assert isinstance(carrier, MemoryCarrier)
        carrier.cut()
        assert (await receive_all(browser)).startswith(b"HTTP/1.1 502 ")
        with pytest.raises(trio.BrokenResourceError):
            await user.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert sum(edge.counters.open_streams.values()) == 0
        again = await bind(edge)
        with pytest.raises(trio.BrokenResourceError):
            await again.receive_some()
        assert edge.counters.refusals[("tcp", "node_not_attached")] == 1
