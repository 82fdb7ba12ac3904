"""Agents for boards, under emulation, against a server of this machine's kind."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.e2e.containers import builder
from tests.e2e.containers.builder import ARM64, ARMV7, Machine
from tests.e2e.containers.containers import Container
from tests.e2e.containers.installation import CloudServer, agent_container
from tests.e2e.containers.test_pair import digest_of_download
from tests.support.net import content
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.processes import Process
from tests.support.processes.site import ECHO, SOURCE

DOWNLOAD_BYTES = 8 << 20
CUT_SECONDS = 8
# An emulated processor is slow, at cryptography above all.
PATIENT = {
    "QANAT_SESSION_CONNECT_TIMEOUT_SECONDS": "60",
    "QANAT_SESSION_ATTACH_TIMEOUT_SECONDS": "60",
    "QANAT_SESSION_RETRY_MAX_SECONDS": "2",
}
# The 32-bit one is always tried: it has no wheel of cffi, and another size of everything.
MACHINES = [ARMV7, *([ARM64] if tools.is_long() else [])]


@pytest.fixture(scope="module", params=MACHINES, ids=lambda machine: machine.debian)
def machine(request: pytest.FixtureRequest) -> Machine:
    chosen: Machine = request.param
    return chosen


@pytest.fixture(scope="module")
def node(machine: Machine) -> str:
    return f"board-{machine.debian}"


@pytest.fixture(scope="module")
def board(
    machine: Machine,
    node: str,
    network: Network,
    server: CloudServer,
    at_the_edges: list[Process],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp(node)
    image = builder.image("agent", machine)
    made = agent_container(
        node, folder, network.edge(2), image, server, server.make_token(node), environment=PATIENT
    )
    try:
        made.start()
        server.wait_attached(node, deadline_seconds=120)
        yield made
    finally:
        made.remove()


def test_the_image_has_its_architecture_and_has_joined(board: Container, node: str, machine: Machine) -> None:
    words = {"armhf": ("32", "arm"), "arm64": ("64", "aarch64")}[machine.debian]
    program = "import platform, struct; print(struct.calcsize('P') * 8, platform.machine())"
    bits, processor = board.execute("python3", "-c", program).stdout.split()
    assert bits == words[0]
    assert processor.startswith(words[1])
    assert "PASS" in board.output()


def test_echo(board: Container, node: str, server: CloudServer) -> None:
    with server.connect_tls(f"{node}:{ECHO}") as answer:
        assert answer.status == 200
        assert answer.echoes(secrets.token_bytes(100_000))


def test_a_copy_is_the_same_to_the_last_byte(board: Container, node: str, server: CloudServer) -> None:
    with server.connect_tls(f"{node}:{SOURCE}", timeout_seconds=60) as answer:
        assert digest_of_download(answer, DOWNLOAD_BYTES) == content.digest_of(DOWNLOAD_BYTES)


def test_a_stream_outlives_a_cut(board: Container, node: str, server: CloudServer, network: Network) -> None:
    with server.connect_tls(f"{node}:{ECHO}", timeout_seconds=90) as answer:
        assert answer.echoes(b"before")
        network.cut(2)
        try:
            answer.socket.sendall(b"in the dark")
            answer.socket.settimeout(CUT_SECONDS)
            with pytest.raises(TimeoutError):
                answer.socket.recv(1)
        finally:
            network.mend(2)
        answer.socket.settimeout(90)
        assert answer.socket.recv(11) == b"in the dark"
        assert answer.echoes(secrets.token_bytes(10_000))


def test_health(board: Container) -> None:
    asked = board.execute("qanat-agent", "health")
    assert (asked.returncode, asked.stdout) == (0, "healthy\n")
