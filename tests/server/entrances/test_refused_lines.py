"""Refusals of one kind at one entrance: one line a second, which counts the others."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.server.entrances.test_connect import serve as serve_connect
from tests.support.fakes.edge import Edge, open_edge, refuse_with
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_server.entrances.tcp import TcpEntrance, TcpForward
from tunnel_server.listeners.listener import Listener

TRIES = 25
SSH = Target(host="localhost", port=22)


async def tcp(edge: Edge) -> Listener:
    return await edge.listen("tcp", TcpEntrance(edge.opener, TcpForward("127.0.0.1:0", "edge1", SSH)).serve)


async def web(edge: Edge) -> Listener:
    return await edge.listen("web", edge.web().serve)


Ask = tuple[Callable[[Edge], Awaitable[Listener]], bytes]
CONNECT: Ask = (serve_connect, b"CONNECT edge1:22 HTTP/1.1\r\nHost: x\r\n\r\n")
TCP: Ask = (tcp, b"")
WEB: Ask = (web, b"GET / HTTP/1.1\r\nHost: red--edge1.localhost\r\nConnection: close\r\n\r\n")
each_entrance = pytest.mark.parametrize("ask", [CONNECT, TCP, WEB], ids=["connect", "tcp", "web"])


async def be_refused(edge: Edge, listener: Listener, request: bytes) -> None:
    async with await edge.dial(listener) as stream:
        try:
            await stream.send_all(request)
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass  # the tcp entrance has no other word


@each_entrance
async def test_before_the_node_attached(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    await check_lines(ask, caplog, Reason.UNKNOWN_NODE, attached=False)


@each_entrance
async def test_by_the_agent(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    await check_lines(ask, caplog, Reason.DIAL_REFUSED, attached=True)


async def check_lines(ask: Ask, caplog: pytest.LogCaptureFixture, reason: Reason, *, attached: bool) -> None:
    caplog.set_level(logging.INFO, "qanat")
    listen, request = ask
    now = 0.0
    async with open_edge(clock=lambda: now) as edge:
        if attached:
            edge.attach("edge1", refuse_with(reason, "nobody listens"))
        listener = await listen(edge)
        for _ in range(TRIES):
            await be_refused(edge, listener, request)
        await trio.testing.wait_all_tasks_blocked()  # the reset comes before the line
        now = 1.0
        await be_refused(edge, listener, request)
        await trio.testing.wait_all_tasks_blocked()
    lines = [vars(record)["fields"] for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line["reason"] for line in lines] == [reason.word] * 2
    assert [line.get("left_out") for line in lines] == [None, TRIES - 1]
