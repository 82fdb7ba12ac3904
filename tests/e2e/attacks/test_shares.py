"""One node or one user that uses as much as it can: what stays available for the others."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from certs.authority_folder import load_authority
from certs.bundle import Bundle, write_bundle
from certs.x509 import CertificateFacts
from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.ground import INNOCENT, Ground
from tests.rogues import hoarder
from tests.support.net import clients
from tests.support.net.one_machine import Here
from tests.support.processes.processes import Process
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until
from tunnel_core.config.loader import load
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.limits import MIB, Limits
from tunnel_core.names import join_host_port
from tunnel_server.config import ServerConfig
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER
from tunnel_server.store.certificates import NewCertificate, Origin
from tunnel_server.store.settings import settings_of
from tunnel_server.store.store import Store, open_store

HOARDERS = 10
ACKED_MIB = 32
STALLED_SECONDS = 0.5
"""Seconds after which an upload that does not move counts as held back."""
KNOWN_NODES = 4000
LISTING_SECONDS = 3.0
SETTLED_SECONDS = 0.3
SILENT_NAMES = 60
"""More than the threads for all other work of trio."""
RESOLVER = """
import socket, time
look_up = socket.getaddrinfo
def emulated(host, *more, **options):
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name.endswith(".silent.example"):
        with open({marks!r}, "a") as marks:
            marks.write(".")
        time.sleep(30)  # as glibc waits for a DNS that does not answer
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return look_up({address!r} if name == "echo.example" else host, *more, **options)
socket.getaddrinfo = emulated
"""


# A node that acknowledges nothing.


@contextmanager
def hoarding(site: Ground, nodes: list[str]) -> Iterator[None]:
    authority = load_authority(site.server.data_dir / AUTHORITY_FOLDER)
    bundles = []
    for node in nodes:
        leaf, identity = authority.issue(Role.NODE, node), SpiffeId(authority.trust_domain, Role.NODE, node)
        bundles.append(site.folder / f"rogue-{node}.pem")
        write_bundle(bundles[-1], Bundle(identity, leaf.credential.key_pem, leaf.chain_pem, leaf.roots_pem))
    server = join_host_port(site.address, site.agents_port)
    argv = [sys.executable, "-m", hoarder.__name__, server, str(ACKED_MIB), *map(str, bundles)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:  # noqa: S603 - ours
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"attached\n"
            yield
        finally:
            process.kill()


def fill(site: Ground, node: str) -> int:
    """Send to a node until nothing moves any more; return how much went."""
    answer = wait_until(lambda: _opened(site, node), f"a stream to {node}")
    answer.socket.settimeout(STALLED_SECONDS)
    sent, piece = 0, bytes(MIB)
    with contextlib.suppress(TimeoutError):
        while sent < 256 * MIB:
            sent += answer.socket.send(piece)
    return sent


def _opened(site: Ground, node: str) -> clients.Answer | None:
    answer = site.connect(ECHO, node)
    return answer if answer.status == 200 else None


def test_nodes_that_acknowledge_nothing_leave_memory_for_the_others(site: Ground, echo: Echo) -> None:
    nodes = [f"hoarder{number}" for number in range(HOARDERS)]
    with echo.measured() as under, hoarding(site, nodes):
        sent = [fill(site, node) for node in nodes]
        assert min(sent) > ACKED_MIB * MIB, "each was held back"
        held = site.server.metric("qanat_send_retained_bytes")
        for _ in range(5):
            with site.connect(ECHO) as answer:
                assert answer.status == 200, answer.phrase
                assert answer.echoes(bytes(4 * MIB))
    assert sum(sent) - HOARDERS * ACKED_MIB * MIB > Limits().send_pool / 4, "they tried"
    assert Limits().send_pool / 8 < held < Limits().send_pool * 7 / 8
    under.require(echo.rest)


# A user who opens all that may be opened.


def test_one_user_leaves_streams_of_a_node_to_the_others(site: Ground, echo: Echo) -> None:
    share, half = Limits().max_streams_per_user, Limits().max_streams // 2
    innocent = site.user_bundle("colleague")
    with echo.measured() as under:
        answers = Counter(site.connect(ECHO).status for _ in range(half + 20))
        assert set(answers) == {200, 429}
        assert share <= answers[200] <= half, "streams of others count too"
        with site.connect_tls(ECHO, identity=innocent) as answer:
            assert answer.status == 200, answer.phrase
            assert answer.echoes(b"as ever")
    under.require(echo.rest)


# A user whose names do not resolve.


@contextmanager
def agent_with_silent_dns(site: Ground) -> Iterator[Path]:
    """Run a second agent. The result is a file that gets a byte for each lookup that waits."""
    folder = site.folder / "resolver"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        RESOLVER.format(address=site.address, marks=str(folder / "marks"))
    )
    agent = site.add_agent("edge3")
    agent.configure(site.server, allow=[f"127.0.0.0/8:{ECHO}"], log={"level": "info", "format": "text"})
    here = {"PYTHONPATH": str(folder)}
    agent.process = Process(agent.name, agent.command(), agent.folder, namespace=Here(), environment=here)
    agent.process.start()
    agent.wait_ready()
    try:
        yield folder / "marks"
    finally:
        agent.process.kill()
        del site.agents["edge3"]


def test_names_that_do_not_resolve_delay_no_other_user(site: Ground, echo: Echo) -> None:
    innocent = site.user_bundle("careful")
    head = f"CONNECT edge3:{ECHO} HTTP/1.1\r\nHost: x\r\nQanat-Target: name{{}}.silent.example:{ECHO}\r\n\r\n"
    with agent_with_silent_dns(site) as marks, echo.measured() as under:
        waiting = [site.server.dial_unix(site.server.connect_socket) for _ in range(SILENT_NAMES)]
        for number, connection in enumerate(waiting):
            connection.sendall(head.format(number).encode())
        wait_until(lambda: _streams_to(site, "edge3") == SILENT_NAMES, "all streams at the server")
        wait_until(lambda: _is_settled(marks), "look-ups that wait")
        target = f"Qanat-Target: echo.example:{ECHO}"
        with site.server.connect_tls(f"edge3:{ECHO}", innocent, headers=[target]) as answer:
            assert answer.status == 200, answer.phrase
            assert answer.echoes(b"found")
        assert not any(_has_answer(connection) for connection in waiting), "the names were waited for"
    under.require(echo.rest)


def _streams_to(site: Ground, node: str) -> int:
    streams = site.server.ask("/api/v1/streams")["streams"]
    return sum(stream["node"] == node for stream in streams)


def _is_settled(marks: Path) -> bool:
    """Whether lookups wait, and no further ones began within a moment."""
    before = marks.stat().st_size
    time.sleep(SETTLED_SECONDS)
    return marks.stat().st_size == before > 0


def _has_answer(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


# A user who asks for everything, again and again.


def know_many_nodes(site: Ground) -> None:
    """Put as many nodes as a fleet has into the store, which the server reads at its start."""
    site.server.process.stop()
    config = load(site.server.config_file, ServerConfig)

    async def record(store: Store, number: int) -> None:
        begins = datetime.now(UTC)
        identity = SpiffeId(config.trust_domain, Role.NODE, f"shop-{number:05}")
        facts = CertificateFacts(identity, f"{number + 1:x}", begins, begins + timedelta(days=9), "aa" * 32)
        await store.record(NewCertificate(facts, bytes(32), Origin.BY_HAND))

    async def fill_store() -> None:
        store = open_store(settings_of(config), lambda: datetime.now(UTC))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.serve)
            for start in range(0, KNOWN_NODES, 1000):
                async with trio.open_nursery() as writing:
                    for number in range(start, start + 1000):
                        writing.start_soon(record, store, number)
            await store.aclose()

    trio.run(fill_store)
    site.recover()
    site.wait_request()


def repeat(request: Callable[[], object], ends: float) -> threading.Thread:
    def run() -> None:
        while time.monotonic() < ends:
            request()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_loop_of_requests_for_all_nodes_delays_no_other_user(site: Ground, echo: Echo) -> None:
    know_many_nodes(site)
    echo.measure(1)  # its stream was lost with the server
    with echo.measured() as under:
        ends = time.monotonic() + LISTING_SECONDS
        pages = ("nodes", "nodes", "nodes?brief=1", "status")
        threads = [repeat(lambda page=page: site.server.ask(f"/api/v1/{page}"), ends) for page in pages]
        for thread in threads:
            thread.join()
    listed = site.server.qanat("nodes")["nodes"]
    names = [node["name"] for node in listed]
    assert INNOCENT in names
    assert sum(name.startswith("shop-") for name in names) == KNOWN_NODES
    assert names == sorted(set(names))
    under.require(echo.rest)
