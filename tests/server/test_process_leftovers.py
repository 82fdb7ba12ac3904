"""A real server and a real agent leave nothing to the garbage collector, whatever their users do.

Both run with the collector off, over loopback. Then each counts what only the collector would free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import trio

from certs.requests import make_request
from tests.server.test_process import DEADLINE_SECONDS, say
from tests.support.net.listening import listening
from tests.support.net.relays import copy
from tests.support.pki import authority as pki
from tests.support.processes import collector_off
from tests.support.processes.servers import AGENT, Program, Site, tcp_port
from tunnel_agent.config import STATUS_SERVICE
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.streams.sockets import RESET_ON_CLOSE
from tunnel_server.commands.server_client import ask_server

FEW, MANY = 20, 200
RARE = 3
MOST_LEFT = 30
"""Objects of Python and libraries that the collector may find after all visits of a kind. None is ours."""
CHUNK = bytes(1 << 20)


@dataclass
class Cutter:
    """The path of the agent to its server. ``cut`` breaks each connection."""

    target: str
    streams: list[trio.SocketStream] = field(default_factory=list)

    async def pass_on(self, near: trio.SocketStream) -> None:
        host, _, port = self.target.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:
            self.streams += [near, far]
            nursery.start_soon(_copy, near, far, nursery.cancel_scope)
            await _copy(far, near, nursery.cancel_scope)

    def cut(self) -> None:
        for stream in self.streams:
            with contextlib.suppress(OSError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                stream.socket.shutdown(socket.SHUT_RDWR)
        self.streams.clear()


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await copy(source, sink)
    scope.cancel()


@dataclass
class Watched:
    """A running server and agent, and what they leave to the collector."""

    site: Site
    server: Program
    agent: Program
    path: Cutter
    target: str
    closed_port: str
    agent_ops: str
    tasks_at_rest: float = 0

    def left(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for name in ("server", "agent"):
            with socket.socket(socket.AF_UNIX) as asking, asking.makefile("rb") as answer:
                asking.connect(str(self.site.folder / f"{name}.collector"))
                found += Counter({f"{name}: {key}": n for key, n in json.loads(answer.read()).items()})
        return found

    async def tasks(self) -> float:
        """Return the number of tasks of both programs."""
        return sum([await self._metric("qanat_tasks", ops) for ops in ("", self.agent_ops)])

    async def settle(self) -> None:
        """Wait until neither end has a stream, and the tasks of ended connections have ended.

        What is still in use is not counted, so an early count could only miss something.
        """
        for ops in ("", self.agent_ops):
            while await self._metric("qanat_streams_open", ops):  # noqa: ASYNC110 - no event announces it
                await trio.sleep(0.02)
        with trio.move_on_after(2):
            while await self.tasks() > self.tasks_at_rest:  # noqa: ASYNC110 - no event announces it
                await trio.sleep(0.02)

    async def _metric(self, name: str, ops: str) -> float:
        lines = (await self.site.page("/metrics", ops))[1].splitlines()
        found = [float(line.split()[-1]) for line in lines if line.startswith(name)]
        assert found, name
        return sum(found)


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    with trio.fail_after(8 * DEADLINE_SECONDS), socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # never listens, so the kernel refuses, and nobody else gets the port
        closed_port = f"127.0.0.1:{closed.getsockname()[1]}"
        async with listening(echo_or_source) as target:
            site = Site(folder, tcp_port(target) + tcp_port(closed_port))
            site.write()
            pki.save_authority(folder / "ca")
            site.server_command, site.agent_command = _watched(folder, "server"), _watched(folder, "agent")
            async with site.server() as server:
                path = Cutter(site.ready["agents"])
                async with listening(path.pass_on) as address, site.agent(target, server=address) as agent:
                    await server.line("node edge1 attached")
                    ops = await agent.line("started")
                    page = str(ops["status"]).split("/")[2]
                    yield Watched(
                        site,
                        server,
                        agent,
                        path,
                        target.rpartition(":")[2],
                        closed_port.rpartition(":")[2],
                        page,
                    )


def _watched(folder: Path, name: str) -> list[str]:
    program = [sys.executable, str(collector_off.__file__), str(folder / f"{name}.collector")]
    return [*program, f"tunnel_{name}.entry"]


async def echo_or_source(stream: trio.SocketStream) -> None:
    """A target that echoes, and that sends without end after a byte of 0."""
    async for data in stream:
        if data[:1] == b"\0":
            while True:
                await stream.send_all(CHUNK)
        await stream.send_all(data)


async def tcp(one: Watched) -> None:
    async with await one.site.through(_ports(one)[0]) as user:
        await say(user, b"question")


async def tcp_refused(one: Watched) -> None:
    async with await one.site.through(_ports(one)[1]) as user:
        with contextlib.suppress(trio.BrokenResourceError):
            assert await user.receive_some() == b""


async def tcp_download_broken_off(one: Watched) -> None:
    user = await one.site.through(_ports(one)[0])
    await user.send_all(b"\0")
    await user.receive_some(100)
    user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    await user.aclose()


def _ports(one: Watched) -> list[str]:
    listed = one.site.ready["tcp"]
    return listed if isinstance(listed, list) else str(listed).split(", ")


async def connect(one: Watched) -> None:
    async with await one.site.tls("https") as user:
        await user.send_all(f"CONNECT edge1:{one.target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await user.receive_some()).startswith(b"HTTP/1.1 200 ")
        await user.send_all(b"question")
        assert await user.receive_some() == b"question"


async def connect_download_broken_off(one: Watched) -> None:
    user = await one.site.tls("https")
    await user.send_all(f"CONNECT edge1:{one.target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (await user.receive_some()).startswith(b"HTTP/1.1 200 ")
    await user.send_all(b"\0")
    await user.receive_some(100)
    await trio.aclose_forcefully(user)


async def connect_refused(one: Watched) -> None:
    for authority in ("edge9:22", "edge1:22", f"edge1:{one.closed_port}"):
        assert (await one.site.ask(f"CONNECT {authority}"))[0] in (403, 404, 502)


async def web(one: Watched) -> None:
    for status in (200, 404):
        node = "edge1" if status == 200 else "edge9"
        head = f"GET / HTTP/1.1\r\nHost: {STATUS_SERVICE}--{node}.localhost\r\nConnection: close\r\n"
        async with await one.site.through(one.site.ready["web"]) as user:
            await user.send_all(f"{head}\r\n".encode())
            answer = b"".join([piece async for piece in user])
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer


async def api(one: Watched) -> None:
    for path in ("version", "nodes", "nodes/edge1", "nodes/edge9", "streams", "unknown"):
        assert (await one.site.ask(f"GET /api/v1/{path}"))[0] in (200, 404)


async def admin(one: Watched) -> None:
    socket_path = one.site.folder / "admin.sock"
    assert "revocations" in await ask_server(socket_path, "GET", "revocations", {})
    await ask_server(socket_path, "POST", "tokens/create", {"node": "edge1"})


async def est(one: Watched) -> None:
    leaf = pki.node_leaf("edge1")
    assert (await one.site.ask("GET /.well-known/est/cacerts", leaf))[0] == 200
    body = make_request(SpiffeId(pki.TRUST_DOMAIN, Role.NODE, "edge1")).body
    fields = f"content-type: application/pkcs10\r\ncontent-length: {len(body)}\r\nconnection: close"
    for operation in ("simpleenroll", "simplereenroll"):
        request = f"POST /.well-known/est/{operation}"
        status, _, _ = await one.site.ask(request, leaf, fields=fields, body=body)
        assert status in (200, 401, 403, 429, 503), status


async def ops(one: Watched) -> None:
    for port in ("", one.agent_ops):
        assert (await one.site.page("/metrics", port))[0] == 200
        assert (await one.site.page("/nothing", port))[0] == 404


async def no_tls(one: Watched) -> None:
    for listener in ("https", "agents"):
        async with await one.site.through(one.site.ready[listener]) as user:
            await user.send_all(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                while await user.receive_some():
                    pass


async def no_certificate(one: Watched) -> None:
    leaf = pki.authority("other.internal").issue(Role.NODE, "edge1")
    for listener in ("https", "agents"):
        with contextlib.suppress(trio.BrokenResourceError, ssl.SSLError):
            user = await one.site.tls(
                listener, dataclasses.replace(leaf, roots_pem=pki.authority().roots_pem)
            )
            with contextlib.closing(user.transport_stream.socket):
                await user.send_all(b"GET / HTTP/1.1\r\n\r\n")
                while await user.receive_some():
                    pass


async def lose_the_carrier(one: Watched) -> None:
    async with await one.site.through(_ports(one)[0]) as user:
        await say(user, b"before")
        one.path.cut()
        await say(user, b"after")


async def attach_and_leave(one: Watched) -> None:
    seen = len(one.server.lines)
    folder = one.site.folder / "edge2"
    folder.mkdir(exist_ok=True)
    other = dataclasses.replace(one.site, folder=folder, agent_command=AGENT)
    async with other.agent("127.0.0.1:1", node="edge2") as agent:
        await one.server.line("node edge2 attached", after=seen)
        agent.signal(signal.SIGTERM)
        assert await agent.exit_code() == 0


Visit: TypeAlias = Callable[[Watched], Awaitable[None]]
VISITS: list[tuple[Visit, int]] = [
    (tcp, MANY),
    (tcp_refused, FEW),
    (tcp_download_broken_off, FEW),
    (connect, FEW),
    (connect_download_broken_off, FEW),
    (connect_refused, FEW),
    (web, FEW),
    (api, FEW),
    (admin, FEW),
    (est, FEW),
    (ops, FEW),
    (no_tls, FEW),
    (no_certificate, FEW),
    (lose_the_carrier, RARE),
    (attach_and_leave, RARE),
]


async def test_visits_leave_nothing_to_the_collector(tmp_path: Path) -> None:
    async with watched(tmp_path) as one:
        one.tasks_at_rest = await one.tasks()
        found = {}
        for visit, count in VISITS:
            await visit(one)
            await one.settle()
            one.left()  # what the first use of anything left
            for _ in range(count):
                await visit(one)
            await one.settle()
            found[visit.__name__] = one.left()
    too_much = {name: left.most_common(12) for name, left in found.items() if _is_too_much(left)}
    assert not too_much, too_much


def _is_too_much(left: Counter[str]) -> bool:
    return left.total() > MOST_LEFT or any(": tunnel_" in kind or ": certs." in kind for kind in left)
