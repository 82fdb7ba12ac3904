"""Server and agent for this machine's processor: everything that users do through them, and their costs."""

from __future__ import annotations

import hashlib
import http.client
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.containers.builder import podman
from tests.e2e.containers.containers import Container
from tests.e2e.containers.installation import WEB, CloudServer, agent_container
from tests.support.browser.node_red import node_red
from tests.support.net import clients, content
from tests.support.net.namespaces import Network
from tests.support.processes.processes import Process
from tests.support.processes.programs import WEB_PORT
from tests.support.processes.site import ECHO, SOURCE

FORWARD_PORT = 9201
COPY_BYTES = 64 << 20
RSS_FLOOR_BYTES = 60 << 20
START_SECONDS = 2.0
HEALTH_SECONDS = 0.1


@pytest.fixture(scope="module")
def agent(
    network: Network,
    server: CloudServer,
    agent_image: str,
    at_the_edges: list[Process],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("pair")
    service = {"name": "flows", "target": f"127.0.0.1:{WEB}", "protocol": "http"}
    made = agent_container(
        "edge1",
        folder,
        network.edge(1),
        agent_image,
        server,
        server.make_token("edge1"),
        settings={"service": [service]},
    )
    try:
        made.start()
        server.wait_attached("edge1")
        yield made
    finally:
        made.remove()


def test_an_empty_volume_becomes_a_server_that_names_the_next_command(server: CloudServer) -> None:
    output = server.first_words
    assert "qanat-server token create --node NAME" in output
    assert "PRIVATE KEY" not in output
    assert server.container.execute("qanat", "nodes", "--json").returncode == 0


def test_it_joined_with_the_token_of_a_file_and_logged_nothing_secret(
    agent: Container, server: CloudServer
) -> None:
    output = agent.output()
    assert re.search("PASS +enrol", output)
    assert "qanat1_" not in output
    assert (agent.volume / "node.pem").stat().st_mode & 0o777 == 0o600


def test_connect(agent: Container, server: CloudServer) -> None:
    with server.connect_tls(f"edge1:{ECHO}") as answer:
        assert answer.status == 200
        assert answer.echoes(secrets.token_bytes(100_000))
    with server.connect_tls("edge1:22") as answer:
        assert answer.status == 403


def test_forward(agent: Container, server: CloudServer, network: Network, tmp_path: Path) -> None:
    argv = ["exec", server.container.name, "qanat", "forward", "edge1", str(ECHO), str(FORWARD_PORT)]
    forward = Process("forward", podman(*argv), tmp_path, namespace=network.cloud)
    forward.start()
    try:
        forward.wait_log(str(FORWARD_PORT))
        with server.dial(FORWARD_PORT) as connection:
            data = secrets.token_bytes(50_000)
            connection.sendall(data)
            assert clients.receive_exactly(connection, len(data)) == data
    finally:
        forward.kill()


@pytest.fixture(scope="module")
def dashboard(
    network: Network, agent: Container, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    program = node_red(tmp_path_factory.mktemp("flows"), WEB, network.edge(1))
    program.start()
    try:
        program.wait_log("Server now running", deadline_seconds=60)
        yield program
    finally:
        program.kill()


def test_web(dashboard: Process, server: CloudServer, network: Network) -> None:
    with network.cloud.entered():
        connection = http.client.HTTPConnection("127.0.0.1", WEB_PORT, timeout=20)
        connection.request("GET", "/", headers={"Host": f"flows--edge1.localhost:{WEB_PORT}"})
        answer = connection.getresponse()
        assert (answer.status, b"Node-RED" in answer.read()) == (200, True)
        connection.close()


def test_websocket(dashboard: Process, server: CloudServer) -> None:
    with server.dial(WEB_PORT) as connection:
        connection.sendall(
            f"GET /comms HTTP/1.1\r\nHost: flows--edge1.localhost:{WEB_PORT}\r\n"
            f"Origin: http://flows--edge1.localhost:{WEB_PORT}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert clients.read_answer(connection).status == 101
        mask, payload = bytes(4), b"well?"
        connection.sendall(bytes([0x89, 0x80 | len(payload)]) + mask + payload)  # a ping, RFC 6455
        assert clients.receive_exactly(connection, 2 + len(payload)) == bytes([0x8A, len(payload)]) + payload


def test_a_copy_is_the_same_to_the_last_byte(agent: Container, server: CloudServer) -> None:
    with server.connect_tls(f"edge1:{SOURCE}") as answer:
        assert digest_of_download(answer, COPY_BYTES) == content.digest_of(COPY_BYTES)


def digest_of_download(answer: clients.Answer, total: int) -> str:
    assert answer.status == 200
    answer.socket.sendall(content.COUNT.pack(total))
    digest = hashlib.sha256()
    left = total
    while left and (part := answer.socket.recv(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    assert not left
    return digest.hexdigest()


# What they cost.


@pytest.mark.parametrize("side", ["agent", "server"])
def test_health_is_quick(side: str, agent: Container, server: CloudServer, network: Network) -> None:
    container = agent if side == "agent" else server.container
    program = (
        "import subprocess, time\n"
        "def once():\n"
        "    begun = time.monotonic()\n"
        f"    subprocess.run(['/opt/qanat/bin/qanat-{side}', 'health'], check=True)\n"
        "    return time.monotonic() - begun\n"
        "print(min(once() for _ in range(10)))\n"
    )
    done = container.execute("python3", "-c", program)
    assert done.returncode == 0, done.stderr
    *answers, seconds = done.stdout.split()
    assert answers == ["healthy"] * 10
    assert float(seconds) < HEALTH_SECONDS


def test_an_idle_agent_is_small(agent: Container, server: CloudServer) -> None:
    agent.start()
    server.wait_attached("edge1")
    agent.wait_output("attached to")
    time.sleep(3)  # what the start leaves behind is given back within a second or two
    assert agent.resident_bytes < RSS_FLOOR_BYTES, f"{agent.resident_bytes / 2**20:.1f} MiB"
    print(f"idle agent: {agent.resident_bytes / 2**20:.1f} MiB")  # noqa: T201 - shown with -s


def test_a_start_to_attached_is_quick(agent: Container, server: CloudServer) -> None:
    """The time includes podman's to make a container."""
    took = []
    for _ in range(3):
        agent.remove()
        began = time.time()
        agent.start()
        agent.wait_output("attached to")
        took.append(agent.logged_at("attached to") - began)
    assert min(took) < START_SECONDS, took
    print(f"start to attached: {took}")  # noqa: T201 - shown with -s
