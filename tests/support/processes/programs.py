"""A server and its agents as real processes, made with the documented commands, with their metrics."""

from __future__ import annotations

import http.client
import json
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.net import clients
from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.processes import Process, run
from tests.support.processes.toml_text import merged, to_toml
from tests.support.processes.waiting import wait_until
from tunnel_core.config.loader import load
from tunnel_core.names import join_host_port
from tunnel_server.config import ServerConfig

AGENTS_PORT, HTTPS_PORT, WEB_PORT, SERVER_OPS_PORT, AGENT_OPS_PORT = 7001, 7002, 7003, 7004, 7005


class Program:
    """The common part of a server and an agent: a config file, a process, a metrics page."""

    def __init__(self, name: str, folder: Path, namespace: Namespace, ops: tuple[str, int]) -> None:
        self.name = name
        self.folder = folder
        self.namespace = namespace
        self._ops = ops
        self._users: list[socket.socket] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.process = self._make_process(None)

    def command(self) -> list[str]:
        raise NotImplementedError

    def limit_descriptors(self, count: int | None) -> None:
        """Set the hard limit of open files from the next start on. None means this machine's own limit."""
        self.process = self._make_process(count)

    def start(self, *, ready_seconds: float = 20) -> None:
        self.process.start()
        self.wait_ready(deadline_seconds=ready_seconds)

    def restart(self) -> None:
        if self.process.running:
            self.process.stop()
        self.start()

    def wait_ready(self, *, deadline_seconds: float = 20) -> None:
        """Wait until ``/readyz`` answers 200. Fails at once, with the log, if the process ends instead."""

        def ready() -> bool:
            if not self.process.running:
                raise AssertionError(f"{self.name} ended:\n{self.process.log_tail()}")
            return self.get("/readyz")[0] == 200

        wait_until(ready, f"{self.name} to be ready", deadline_seconds=deadline_seconds)

    def dial(self, port: int) -> socket.socket:
        """Return a connection to ``port`` on the loopback address of the program's namespace."""
        with self.namespace.entered():
            return self._kept(socket.create_connection((self._ops[0], port), timeout=20))

    def hang_up(self) -> None:
        """Close every connection that was given to a test and is still open."""
        while self._users:
            self._users.pop().close()

    def _kept(self, connection: socket.socket) -> socket.socket:
        self._users.append(connection)
        return connection

    def get(self, path: str) -> tuple[int, str]:
        """Send a GET to the ops listener; returns status and body. Raises ``OSError`` if none listens."""
        with self.namespace.entered():
            connection = http.client.HTTPConnection(*self._ops, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except http.client.HTTPException as error:
                raise ConnectionError(str(error)) from error
            finally:
                connection.close()

    def metrics(self) -> dict[str, float]:
        """Return every sample by its name with labels, as Prometheus reads it."""
        return parse_metrics(self.get("/metrics")[1])

    def metric(self, name: str) -> float:
        """Return the sum of ``name`` over all label values; 0 without any."""
        return sum(value for key, value in self.metrics().items() if key.partition("{")[0] == name)

    def wait_idle(self, *, deadline_seconds: float = 10) -> None:
        """Wait until the program has no stream, and so has granted no credit."""
        what = f"no stream in {self.name}"
        wait_until(lambda: not self.holds(), what, deadline_seconds=deadline_seconds)

    def holds(self) -> float:
        """Return open streams and granted bytes together: 0 at rest."""
        return self.metric("qanat_streams_open") + self.metric("qanat_credit_granted_bytes")

    def move_ops(self, port: int) -> None:
        """Set the ops port of a second program in the same namespace."""
        self._ops = (self._ops[0], port)

    def namespace_sockets(self, state: str) -> int:
        """Return the number of TCP sockets of the namespace in this state, named as ``ss`` names it."""
        return len(self.namespace.run("ss", "-Htn", "state", state).splitlines())

    def write_config(self, table: Mapping[str, Any]) -> None:
        self.config_file.write_text(to_toml(table))

    @property
    def config_file(self) -> Path:
        raise NotImplementedError

    def _make_process(self, max_descriptors: int | None) -> Process:
        return Process(
            self.name, self.command(), self.folder, namespace=self.namespace, max_descriptors=max_descriptors
        )


def parse_metrics(text: str) -> dict[str, float]:
    samples = re.findall(r"^([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)", text, re.MULTILINE)
    return {name: float(value) for name, value in samples}


class Server(Program):
    """A server with an authority of its own, reached at ``address``."""

    def __init__(
        self, folder: Path, namespace: Namespace, address: str, *, loopback: str = "127.0.0.1"
    ) -> None:
        self.address = address
        self.loopback = loopback
        super().__init__("server", folder, namespace, (loopback, SERVER_OPS_PORT))

    def command(self) -> list[str]:
        return self.administering("run", "--config", str(self.config_file))

    @property
    def config_file(self) -> Path:
        return self.data_dir / "server.toml"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def user_bundle(self) -> Path:
        """The operator's bundle, which ``init`` made."""
        return self.data_dir / "operator.pem"

    @property
    def trust_file(self) -> Path:
        return load(self.config_file, ServerConfig).tls.trust_file

    @property
    def trust_domain(self) -> str:
        return load(self.config_file, ServerConfig).trust_domain

    @property
    def admin_socket(self) -> Path:
        return self.data_dir / "admin.sock"

    @property
    def connect_socket(self) -> Path:
        return self.folder / "connect.sock"

    def initialise(self, changes: Mapping[str, Any] | None = None, names: Sequence[str] = ()) -> None:
        """Run ``qanat-server init``, then apply ``changes`` to the config file that it wrote.

        The certificate is for ``names``, then for the address.
        """
        named = [word for name in (*names, self.address) for word in ("--name", name)]
        self._qanat_server("init", *named, "--data-dir", str(self.data_dir))
        written = tomllib.loads(self.config_file.read_text())
        table = merged(merged(written, self._own_settings()), changes or {})
        self.write_config(table)
        for peer in table["connect"].get("unix", {}).get("peer", ()):
            self.allow(peer["user"])

    def allow(self, user: str) -> None:
        """Grant everything to ``user``. A release without grants allows it without a command."""
        everything = ("--verb", "*", "--node", "*", "--target", "*")
        argv = self.administering(
            "grant", "add", "--user", user, *everything, "--config", str(self.config_file)
        )
        done = run(*argv)
        assert done.returncode == 0 or "No such command" in done.stderr, f"{done.stdout}{done.stderr}"

    def issue_node(self, name: str, path: Path) -> Path:
        self.command_line("issue", "node", name, "--out", str(path))
        return path

    def issue_user(self, name: str, path: Path) -> Path:
        self.command_line("issue", "user", name, "--out", str(path))
        self.allow(name)
        return path

    def issue_user_pem(self, name: str, folder: Path) -> None:
        """Write one PEM file each for key, certificate and roots, as an API server needs them."""
        self.command_line("issue", "user", name, "--pem", str(folder))
        self.allow(name)

    def command_line(self, *arguments: str) -> str:
        """Return the output of ``qanat-server ARGUMENTS`` for this installation, running or not."""
        return self._qanat_server(*arguments, "--config", str(self.config_file))

    def command_json(self, *arguments: str) -> Any:
        return json.loads(self.command_line(*arguments, "--json"))

    def token(self, node: str = "", **more: Any) -> str:
        """Make a join token of the running server: for one node, or with the options ``more``."""
        return str(self.tell("tokens/create", **({"node": node} if node else {}), **more)["token"])

    def audit(self, **question: Any) -> list[dict[str, Any]]:
        """Return audit lines of the running server, newest last."""
        lines: list[dict[str, Any]] = self.ask(f"/api/v1/admin/audit?{urlencode(question)}")["audit"]
        return lines

    def connect(
        self, authority: str, *, headers: Sequence[str] = (), timeout_seconds: float = 20
    ) -> clients.Answer:
        """Send CONNECT over the unix socket, as the user that belongs to the client's uid."""
        dialled = self.dial_unix(self.connect_socket, timeout_seconds=timeout_seconds)
        return clients.connect(dialled, authority, *headers)

    def dial_unix(self, path: Path, *, timeout_seconds: float = 20) -> socket.socket:
        return self._kept(clients.dial_unix(path, timeout_seconds=timeout_seconds))

    def connect_tls(
        self,
        authority: str,
        identity: Path | None = None,
        *,
        headers: Sequence[str] = (),
        timeout_seconds: float = 20,
    ) -> clients.Answer:
        """Send CONNECT over mutual TLS, from inside the server's namespace."""
        bundle = identity or self.user_bundle
        dialled = self.dial_tls(HTTPS_PORT, bundle, timeout_seconds=timeout_seconds)
        return clients.connect(dialled, authority, *headers)

    def dial_tls(self, port: int, identity: Path | None, *, timeout_seconds: float = 20) -> socket.socket:
        with self.namespace.entered():
            dialled = clients.dial_tls(
                (self.loopback, port),
                trust=self.trust_file,
                identity=identity,
                timeout_seconds=timeout_seconds,
            )
            return self._kept(dialled)

    def holds(self) -> float:
        return super().holds() + len(self.ask("/api/v1/streams")["streams"])

    def ask(self, path: str) -> Any:
        """Return the API's answer on the admin socket."""
        return self._ask(f"GET {path}", b"")

    def tell(self, act: str, **arguments: Any) -> Any:
        """Send an administrator's request over the admin socket; ``act`` is such as ``nodes/revoke``."""
        return self._ask(f"POST /api/v1/admin/{act}", json.dumps(arguments).encode())

    def _ask(self, what: str, body: bytes) -> Any:
        lines = [f"{what} HTTP/1.1", "Host: admin", "Connection: close", "Content-Type: application/json"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        with self.dial_unix(self.admin_socket) as connection:
            connection.sendall(head.encode() + body)
            answer, _, content = clients.receive_all(connection).partition(b"\r\n\r\n")
        assert b" 200 " in answer.split(b"\r\n")[0], answer + content
        return json.loads(content)

    def qanat(self, *arguments: str, deadline_seconds: float = 30) -> Any:
        """Run ``qanat ARGUMENTS --json`` in the server's namespace and return its output."""
        argv = [tools.program("qanat"), "--bundle", str(self.user_bundle), *arguments, "--json"]
        done = run(*argv, namespace=self.namespace, deadline_seconds=deadline_seconds)
        assert done.returncode == 0, f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr}"
        return json.loads(done.stdout)

    def _own_settings(self) -> dict[str, Any]:
        at = self.loopback
        return {
            "connect": {
                "enabled": True,
                "unix": {"path": str(self.connect_socket), "peer": [{"uid": 0, "user": "tester"}]},
            },
            "web": {"listen": [join_host_port(at, WEB_PORT)]},
            "ops": {"listen": join_host_port(at, SERVER_OPS_PORT)},
            "log": {"level": "debug", "format": "text"},
        }

    def administering(self, *arguments: str) -> list[str]:
        """Return the command line of ``qanat-server ARGUMENTS``."""
        return [tools.program("qanat-server"), *arguments]

    def _qanat_server(self, *arguments: str) -> str:
        argv = self.administering(*arguments)
        done = run(*argv)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout


class Agent(Program):
    """The agent of one node at one edge."""

    def __init__(self, node: str, folder: Path, namespace: Namespace, *, loopback: str = "127.0.0.1") -> None:
        self.node = node
        self.loopback = loopback
        super().__init__(f"agent-{node}", folder, namespace, (loopback, AGENT_OPS_PORT))

    def command(self) -> list[str]:
        return [tools.program("qanat-agent"), "run", "--config", str(self.config_file)]

    @property
    def config_file(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def bundle(self) -> Path:
        return self.folder / f"{self.node}.pem"

    def configure(self, server: Server, *, allow: list[str], **changes: Any) -> None:
        """Write the config file, with ``changes`` applied."""
        table = {
            "servers": [join_host_port(server.address, AGENTS_PORT)],
            "bundle_file": str(self.bundle),
            "allow": allow,
            "dial_timeout_seconds": 2,
            "ops": {"listen": join_host_port(self.loopback, AGENT_OPS_PORT)},
            "log": {"level": "debug", "format": "text"},
        }
        self.write_config(merged(table, changes))
