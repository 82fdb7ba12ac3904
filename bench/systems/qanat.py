"""The product as users run it: `qanat-server run` and `qanat-agent run` with their own files.

All settings are the defaults, also the log lines of streams; the bench chooses only ports and folders.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.delay import maybe_delayed
from bench.load import Dial, LoadError, dial, dial_unix, dialler
from bench.places import HERE, ON_LOOPBACK, Ends, Place
from bench.processes import BenchError, child, free_ports, wait_until
from bench.systems.system import System, on_loopback
from certs.bundle import Bundle, write_bundle
from certs.ca import Authority, create_authority
from tunnel_core.identity import Role, SpiffeId

NODE = "bench"
TRUST_DOMAIN = "bench.internal"
WEB_HOST = f"page--{NODE}.localhost"
_UNIX_SOCKET = "connect.sock"


@dataclass(frozen=True)
class Product(System):
    """`connect` opens connections through the `connect` entrance over mTLS, `to` through `tcp`.

    `handshake` opens connections to the port of `connect` that end after the TLS handshake.
    `unix_requests` only send the CONNECT, on the unix socket of `connect`; `read_answer` reads the answer.
    """

    connect: Mapping[str, Dial] = field(default_factory=dict)
    handshake: Dial | None = None
    unix_requests: Mapping[str, Dial] = field(default_factory=dict)
    web: Dial | None = None
    """Opens connections to the `web` entrance, where `WEB_HOST` is the virtual host of the page."""
    server_ops: int = 0
    agent_ops: int = 0


@dataclass(frozen=True)
class Server:
    """A running server and the authority behind it."""

    pid: int
    agents: int
    https: int
    web: int
    ops: int
    tcp: Mapping[str, int]
    authority: Authority
    log: Path
    place: Place = HERE


def _installed(name: str) -> list[str]:
    """Return the start of a command line: the installed program. Raises `BenchError` if it is missing."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise BenchError(f"{path} is missing: install the project into this environment (pip install -e .)")
    return [str(path)]


def _unbounded(name: str) -> list[str]:
    return [sys.executable, "-m", "bench.systems.unbounded", *_installed(name)]


def _counted(folder: Path, name: str) -> list[str]:
    return [
        *(sys.executable, "-m", "bench.systems.counted", str(counting_socket(folder, name))),
        *_installed(name),
    ]


def counting_socket(folder: Path, name: str) -> Path:
    """Return the socket on which the counted program `name` in `folder` reports its calls."""
    return folder / f"{name}.sock"


@contextmanager
def running(
    targets: Mapping[str, int],
    folder: Path,
    *,
    delay_seconds: float = 0.0,
    ends: Ends = ON_LOOPBACK,
    profile: str = "default",
    bounded: bool = True,
    counted: bool = False,
) -> Iterator[Product]:
    """Start a server and an attached agent, with `delay_seconds` in each direction on loopback between them.

    `bounded=False`: the flight limit is off, and the system is named `unbounded`. `counted`: both programs
    count their calls, and answer on the sockets of `counting_socket`. Raises `BenchError`.
    """
    run = _installed if bounded else _unbounded
    if counted:
        run = functools.partial(_counted, folder)
    with (
        serving(targets, folder / "server", ends, run) as server,
        maybe_delayed(server.agents, delay_seconds, folder / "delay.log") as port,
        _attached(server, port, targets, folder / "agent", ends, profile, run) as (agent_pid, agent_ops),
    ):
        connect = connect_to(server)
        yield Product(
            "qanat" if bounded else "unbounded",
            on_loopback(server.tcp, ends.server),
            (server.pid,),
            (agent_pid,),
            (server.log, folder / "agent" / "log"),
            connect=_connect_dials(connect, targets),
            handshake=connect,
            unix_requests={role: _unix_request(server, port) for role, port in targets.items()},
            web=dialler("127.0.0.1", server.web, ends.server),
            server_ops=server.ops,
            agent_ops=agent_ops,
        )


@contextmanager
def serving(
    targets: Mapping[str, int],
    folder: Path,
    ends: Ends = ON_LOOPBACK,
    run: Callable[[str], list[str]] = _installed,
) -> Iterator[Server]:
    """Start a server with a `tcp` listener for each target; stop it at the end. Raises `BenchError`."""
    folder.mkdir(parents=True)
    agents, https, web, ops, *tcp = free_ports(4 + len(targets), ends.server)
    authority = _authority(folder, ends.address)
    ports = dict(zip(targets, tcp, strict=True))
    lines = [
        f'trust_domain = "{TRUST_DOMAIN}"',
        f'data_dir = "{folder}"',
        "[tls]",
        f'certificate_file = "{folder}/server.pem"',
        f'key_file = "{folder}/server.key"',
        f'trust_file = "{folder}/trust.pem"',
        f'[agents]\nlisten = ["{ends.address}:{agents}"]',
        f'[https]\nlisten = ["127.0.0.1:{https}"]',
        f'[connect.unix]\npath = "{folder / _UNIX_SOCKET}"',
        f'[[connect.unix.peer]]\nuid = {os.getuid()}\nuser = "bench"',
        f'[web]\nlisten = ["127.0.0.1:{web}"]',
        f'[ops]\nlisten = "127.0.0.1:{ops}"',
        "[session]\nmax_streams_per_user = 1024",  # the load is one user
    ]
    for role, port in ports.items():
        target = f"127.0.0.1:{targets[role]}"
        lines += ["[[tcp]]", f'listen = "127.0.0.1:{port}"', f'node = "{NODE}"', f'target = "{target}"']
    config, log = folder / "server.toml", folder / "log"
    config.write_text("\n".join(lines) + "\n")
    for user in ("*", "loopback"):
        _grant_services(config, user)
    argv = [*run("qanat-server"), "run", "--config", str(config)]
    with child(argv, log, place=ends.server) as process:
        wait_until("qanat-server is ready", lambda: is_ready(ops, ends.server), process, log)
        yield Server(process.pid, agents, https, web, ops, ports, authority, log, ends.server)


def _grant_services(config: Path, user: str) -> None:
    """Grant everything to ``user``. A version of before grants has no such command, and needs none."""
    everything = ["--verb", "connect,http,api", "--node", "*", "--target", "*", "--config", str(config)]
    argv = [*_installed("qanat-server"), "grant", "add", "--user", user, *everything]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode and "No such command" not in done.stderr:
        raise BenchError(f"no grant was added: {done.stderr}")


@contextmanager
def _attached(
    server: Server,
    port: int,
    targets: Mapping[str, int],
    folder: Path,
    ends: Ends,
    profile: str,
    run: Callable[[str], list[str]],
) -> Iterator[tuple[int, int]]:
    folder.mkdir(parents=True)
    issue(server.authority, Role.NODE, NODE, folder / "node.pem")
    ops = free_ports(1, ends.agent)[0]
    allowed = [f"{host}:{target}" for target in targets.values() for host in ("127.0.0.1", "localhost")]
    lines = [
        f'servers = ["{ends.address}:{port}"]',
        f'bundle_file = "{folder}/node.pem"',
        f"allow = {json.dumps(allowed)}",
        f'[link]\nprofile = "{profile}"',
        f'[ops]\nlisten = "127.0.0.1:{ops}"',
    ]
    if "page" in targets:
        lines += [f'[[service]]\nname = "page"\nprotocol = "http"\ntarget = "127.0.0.1:{targets["page"]}"']
    config, log = folder / "agent.toml", folder / "log"
    config.write_text("\n".join(lines) + "\n")
    argv = [*run("qanat-agent"), "run", "--config", str(config)]
    with child(argv, log, place=ends.agent) as process:
        wait_until("qanat-agent is attached", lambda: is_attached(server, ops, ends.agent), process, log)
        yield process.pid, ops


def _authority(folder: Path, address: str) -> Authority:
    authority = create_authority(TRUST_DOMAIN).authority
    server = authority.issue(Role.SERVER, "main", names=["localhost", *{"127.0.0.1", address}])
    (folder / "server.pem").write_bytes(server.chain_pem)
    (folder / "server.key").touch(0o600)
    (folder / "server.key").write_bytes(server.credential.key_pem)
    (folder / "trust.pem").write_bytes(authority.roots_pem)
    return authority


def issue(authority: Authority, role: Role, name: str, path: Path) -> None:
    """Issue a certificate and write its bundle to `path`."""
    leaf = authority.issue(role, name)
    identity = SpiffeId(authority.trust_domain, role, name)
    write_bundle(path, Bundle(identity, leaf.credential.key_pem, leaf.chain_pem, leaf.roots_pem))


# ------------------------------------------------------------------------- readiness and metrics


def is_attached(server: Server, agent_ops: int, agent: Place) -> bool:
    """Whether both ends report the session, because on a slow line the agent reports it first."""
    return is_ready(agent_ops, agent) and metric(server.ops, "qanat_sessions", server.place) == 1


def is_ready(ops: int, place: Place = HERE) -> bool:
    """Whether `/readyz` at the port `ops` answers 200."""
    try:
        return _get(ops, "/readyz", place)[0] == http.client.OK
    except OSError:
        return False


def metric(ops: int, name: str, place: Place = HERE) -> float:
    """Return the sum of a metric's series. Raises `BenchError` if there is none."""
    _, text = _get(ops, "/metrics", place)
    values = [line.split()[-1] for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name]
    if not values:
        raise BenchError(f"/metrics has no {name}")
    return sum(map(float, values))


def labelled(ops: int, series: str, place: Place = HERE) -> float:
    """Return one series of a counter, by its name with labels; 0 before its first count."""
    _, text = _get(ops, "/metrics", place)
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{series} "))


def _get(port: int, path: str, place: Place) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        with place.entered():
            connection.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


# ------------------------------------------------------------------ the entrance `connect`, mTLS


def _connect_dials(connect: Callable[..., socket.socket], targets: Mapping[str, int]) -> Mapping[str, Dial]:
    def dialler(port: int) -> Dial:
        def dial_target(*, receive_bytes: int = 0) -> socket.socket:
            return connect(f"{NODE}:{port}", receive_bytes)

        return dial_target

    return {role: dialler(port) for role, port in targets.items()}


def _unix_request(server: Server, port: int) -> Dial:
    def request(*, receive_bytes: int = 0) -> socket.socket:
        sock = dial_unix(str(server.log.parent / _UNIX_SOCKET), receive_bytes)
        _send_request(sock, f"{NODE}:{port}")
        return sock

    return request


def connect_to(server: Server) -> Callable[..., socket.socket]:
    """Return a function that opens a connection to `node:port`, as a new user.

    Without an authority the connection has only done its TLS handshake.
    """
    bundle = server.log.parent / "user.pem"
    issue(server.authority, Role.USER, "bench", bundle)
    context = ssl.create_default_context(cafile=str(server.log.parent / "trust.pem"))
    context.load_cert_chain(bundle)

    def connect(authority: str = "", receive_bytes: int = 0) -> socket.socket:
        with server.place.entered():
            plain = dial("127.0.0.1", server.https, receive_bytes)
        sock = context.wrap_socket(plain, server_hostname="localhost")
        return _through_connect(sock, authority) if authority else sock

    return connect


def _through_connect(sock: socket.socket, authority: str) -> socket.socket:
    _send_request(sock, authority)
    read_answer(sock)
    return sock


def _send_request(sock: socket.socket, authority: str) -> None:
    sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())


def read_answer(sock: socket.socket) -> None:
    """Read the head of the answer to CONNECT. Raises `LoadError` if it is not 200."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        if not piece:
            raise LoadError(f"CONNECT: {head!r}")
        head += piece
    if not head.startswith(b"HTTP/1.1 200 "):
        raise LoadError(f"CONNECT: {head!r}")
