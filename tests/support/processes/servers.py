"""The real ``qanat-server`` and ``qanat-agent`` as child processes, with their logs read while they run."""

from __future__ import annotations

import dataclasses
import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from certs.bundle import write_bundle
from certs.ca import Leaf
from certs.files import write_private
from tests.support.fakes.granting import store_everything_granted
from tests.support.net.dialling import dial
from tests.support.pki import authority as pki
from tunnel_core.identity import Role
from tunnel_server.store.store import FILE

SERVER = [sys.executable, "-c", "from tunnel_server.entry import entry_point; entry_point()"]
AGENT = [sys.executable, "-c", "from tunnel_agent.entry import entry_point; entry_point()"]
ANYWHERE = "127.0.0.1:0"
Line = Mapping[str, Any]


class Program:
    """A running program. It logs to standard error, one JSON object a line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[Line] = []
        self.stray: list[str] = []  # output that is no log line: tracebacks, click's messages
        self._grown = trio.Event()
        self._ended = False

    async def read_log(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        assert self.process.stderr is not None
        task_status.started()
        rest = b""
        async for chunk in self.process.stderr:
            *complete, rest = (rest + chunk).split(b"\n")
            for line in complete:
                self._take(line.decode())
            self._wake()
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        grown, self._grown = self._grown, trio.Event()
        grown.set()

    def _take(self, line: str) -> None:
        try:
            self.lines.append(json.loads(line))
        except ValueError:
            self.stray.append(line)

    async def line(self, words: str, after: int = 0, **fields: object) -> Line:
        """Return the first line from index ``after`` on with ``words`` in its message and these fields."""
        while True:
            for line in self.lines[after:]:
                if words in line["message"] and fields.items() <= line.items():
                    return line
            assert not self._ended, f"no line {words!r} {fields}: {self.lines[after:]} {self.stray}"
            await self._grown.wait()

    def signal(self, number: int) -> int:
        """Send the signal, and return the length of the log before it, for ``line(after=...)``."""
        self.process.send_signal(number)
        return len(self.lines)

    async def exit_code(self) -> int:
        return await self.process.wait()


@asynccontextmanager
async def unread(command: Sequence[str], *, stderr: int | None = None) -> AsyncIterator[trio.Process]:
    """Run a program whose log nobody reads. It is killed at the end of the block if it still runs."""
    process = await trio.lowlevel.open_process(command, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def running(command: list[str]) -> AsyncIterator[Program]:
    """Run a program. It is killed at the end of the block if it still runs."""
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    program = Program(process)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(program.read_log)
            try:
                yield program
            finally:
                process.kill()
    finally:
        with trio.CancelScope(shield=True):
            await process.wait()


@dataclasses.dataclass
class Site:
    """A server's files in ``folder``, and its addresses while it runs."""

    folder: Path
    extra: str = ""
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    ready: Line = dataclasses.field(default_factory=dict)
    server_command: list[str] = dataclasses.field(default_factory=lambda: SERVER)
    agent_command: list[str] = dataclasses.field(default_factory=lambda: AGENT)
    _opened: list[trio.SocketStream] = dataclasses.field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "server.toml"

    def write(self, leaf: Leaf | None = None) -> None:
        """Write the files of a server at which every user may do everything."""
        if not (self.folder / FILE).exists():
            store_everything_granted(self.folder / FILE)
        self.write_certificate(leaf or pki.server_leaf())
        (self.folder / "trust.pem").write_bytes(pki.authority().roots_pem)
        listen = {"agents": [ANYWHERE], "https": [ANYWHERE], "web": [ANYWHERE], "ops": ANYWHERE}
        tables = [f"[{name}]\nlisten = {json.dumps(value)}\n" for name, value in listen.items()]
        top = {"trust_domain": f'"{pki.TRUST_DOMAIN}"', "data_dir": f'"{self.folder}"', **self.settings}
        text = "".join(f"{key} = {value}\n" for key, value in top.items())
        self.config.write_text(text + "".join(tables) + self.extra)

    def write_certificate(self, leaf: Leaf) -> None:
        write_private(self.folder / "server.key", leaf.credential.key_pem)
        (self.folder / "server.pem").write_bytes(leaf.chain_pem)

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Program]:
        async with running([*self.server_command, "run", "--config", str(self.config)]) as program:
            self.ready = await program.line("ready")
            try:
                yield program
            finally:
                for stream in self._opened:
                    stream.socket.close()

    @asynccontextmanager
    async def agent(
        self,
        allow: str,
        *,
        leaf: Leaf | None = None,
        role: Role = Role.NODE,
        server: str = "",
        node: str = "edge1",
    ) -> AsyncIterator[Program]:
        """Run an agent of ``node``, or with another certificate. ``server``: its address for agents."""
        bundle = pki.bundle_of(role, node, agents=(server or self.ready["agents"],))
        if leaf is not None:
            bundle = dataclasses.replace(bundle, key_pem=leaf.credential.key_pem, chain_pem=leaf.chain_pem)
        write_bundle(self.folder / "node.pem", bundle)
        config = self.folder / "agent.toml"
        config.write_text(f'allow = ["{allow}"]\n[ops]\nlisten = "{ANYWHERE}"\n')
        async with running([*self.agent_command, "run", "--config", str(config)]) as program:
            yield program

    async def page(self, path: str, ops: str = "") -> tuple[int, str]:
        """Return status and body of a page of the server's ops listener, or of another one."""
        host, _, port = (ops or self.ready["ops"]).rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
            )
            head, _, body = b"".join([piece async for piece in stream]).partition(b"\r\n\r\n")
            return int(head.split()[1]), body.decode()

    async def tls(self, listener: str, leaf: Leaf | None = None) -> trio.SSLStream[trio.SocketStream]:
        """Return a TLS connection to the HTTPS or the agents' listener, by default as user kim."""
        leaf = leaf or pki.user_leaf("kim")
        context = ssl.create_default_context(cadata=leaf.roots_pem.decode())
        own = self.folder / "own.pem"
        own.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
        context.load_cert_chain(own)
        context.set_alpn_protocols(["h2" if listener == "agents" else "http/1.1"])
        host, _, port = self.ready[listener].rpartition(":")
        plain = await self._connect(host, int(port))
        stream = trio.SSLStream(plain, context, server_hostname=host, https_compatible=True)
        await stream.do_handshake()
        return stream

    async def shown_certificate(self, listener: str) -> bytes:
        """Return the certificate (DER) that a new connection receives."""
        stream = await self.tls(listener)
        try:
            shown: bytes = stream.getpeercert(binary_form=True)
            return shown
        finally:
            await trio.aclose_forcefully(stream)

    async def ask_with(self, leaf: Leaf, roots_pem: bytes) -> tuple[int, str, str]:
        """Ask for the version as a client whose roots differ from those of its own leaf."""
        return await self.ask("GET /api/v1/version", dataclasses.replace(leaf, roots_pem=roots_pem))

    async def ask(
        self, request: str, leaf: Leaf | None = None, *, fields: str = "connection: close", body: bytes = b""
    ) -> tuple[int, str, str]:
        """Return status, reason phrase and body of one request to the HTTPS listener."""
        stream = await self.tls("https", leaf)
        try:
            await stream.send_all(f"{request} HTTP/1.1\r\nhost: x\r\n{fields}\r\n\r\n".encode() + body)
            head, _, body = b"".join([piece async for piece in stream]).partition(b"\r\n\r\n")
        finally:
            await trio.aclose_forcefully(stream)
        _, status, phrase = head.split(b"\r\n")[0].decode().split(" ", 2)
        return int(status), phrase, body.decode()

    async def through(self, target: str = "") -> trio.SocketStream:
        """Return a connection to the first ``[[tcp]]`` port."""
        host, _, port = (target or self.ready["tcp"]).rpartition(":")
        return await self._connect(host, int(port))

    async def _connect(self, host: str, port: int) -> trio.SocketStream:
        self._opened.append(await dial(host, port))
        return self._opened[-1]


def tcp_port(target: str) -> str:
    """Return the table of a ``[[tcp]]`` port that leads to ``target`` at edge1."""
    return f'[[tcp]]\nlisten = "{ANYWHERE}"\nnode = "edge1"\ntarget = "{target}"\n'


async def run_server(config: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a server that does not start, to its end."""
    with trio.fail_after(20):
        command = [*SERVER, "run", "--config", str(config)]
        return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
