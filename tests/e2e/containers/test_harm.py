"""Faults of containers: full disks, wrong owners, wrong clocks, all ends. Each is reported or survived."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.containers.containers import USER, Container
from tests.e2e.containers.installation import CloudServer, agent_container
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.processes import Process
from tests.support.processes.programs import Server
from tests.support.processes.site import ECHO

Make = Callable[..., Container]
STOP_SECONDS = 10
"""Docker's patience."""
NOWHERE = "198.51.100.1"


@pytest.fixture
def make(
    network: Network,
    server: CloudServer,
    agent_image: str,
    at_the_edges: list[Process],
    tmp_path: Path,
) -> Iterator[Make]:
    """Makes an agent's container at edge 1; all are removed at the end."""
    made: list[Container] = []

    def one(node: str, token: str | None = None, user: int | None = None, **environment: str) -> Container:
        token = server.make_token(node) if token is None else token
        place, edge = tmp_path / node, network.edge(1)
        container = agent_container(
            node, place, edge, agent_image, server, token, environment=environment, user=user
        )
        made.append(container)
        return container

    yield one
    for container in made:
        container.remove()


def test_its_root_is_read_only_and_it_may_do_nothing_special(make: Make, server: CloudServer) -> None:
    agent = make("plain")
    agent.start()
    server.wait_attached("plain")
    for place in ("/opt/qanat/x", "/etc/x", "/tmp/x", "/run/x"):  # noqa: S108 - to see that it fails
        written = agent.execute("python3", "-c", f"open({place!r}, 'w')")
        assert "Read-only file system" in written.stderr, place
    status = Path(f"/proc/{agent.pid}/status").read_text()
    assert re.search(rf"^Uid:\s+{USER}\s+{USER}\s", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert sorted(path.name for path in agent.volume.iterdir()) == ["node.pem"]


def test_root_without_capabilities_does_as_well_where_the_folder_is_roots(
    make: Make, server: CloudServer
) -> None:
    agent = make("rooted", user=0)
    agent.start()
    server.wait_attached("rooted")
    assert re.search(r"^CapEff:\s+0+$", Path(f"/proc/{agent.pid}/status").read_text(), re.MULTILINE)
    assert (agent.volume / "node.pem").stat().st_uid == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for next to nothing; to be given more by ``enlarge``."""
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size=32k,uid={USER},gid={USER},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "qanat-e2e", place], check=True)  # noqa: S603, S607
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # noqa: S603, S607


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)  # noqa: S603, S607


def test_a_full_volume_spends_no_token(make: Make, server: CloudServer, small_disk: Path) -> None:
    agent = make("full")
    agent.volume = small_disk
    agent.start()
    assert agent.wait_exit() == 2
    assert "cannot be written: No space left on device" in agent.output()
    assert "make room there" in agent.output()
    enlarge(small_disk)
    agent.start()
    server.wait_attached("full")


def test_a_server_with_a_full_volume_logs_it_and_starts_again(
    network: Network, server_image: str, small_disk: Path
) -> None:
    told = {"QANAT_INIT_NAME": "localhost"}
    full = Container("full-server", server_image, small_disk, network.edge(2), environment=told)
    try:
        full.start()
        assert full.wait_exit() != 0
        assert re.search("[Nn]o space left|database or disk is full", full.output())
        enlarge(small_disk)
        full.start()
        full.wait_output('"ready"')
    finally:
        full.remove()


def test_a_volume_of_another_user_is_named_with_the_cure(make: Make, server: CloudServer) -> None:
    agent = make("owned")
    os.chown(agent.volume, 0, 0)
    agent.start()
    assert agent.wait_exit() == 2
    assert "/var/lib/qanat cannot be written: Permission denied" in agent.output()
    assert "the user who owns /var/lib/qanat" in agent.output()
    os.chown(agent.volume, USER, USER)
    agent.start()
    server.wait_attached("owned")


def test_a_server_whose_volume_belongs_to_another_user_logs_it(
    network: Network, server_image: str, tmp_path: Path
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir(mode=0o700)
    told = {"QANAT_INIT_NAME": "localhost"}
    container = Container("foreign-server", server_image, folder, network.edge(2), environment=told)
    try:
        container.start()
        assert container.wait_exit() != 0
        assert "Permission denied" in container.output()
        assert "/var/lib/qanat" in container.output()
        assert "Traceback" not in container.output()
    finally:
        container.remove()


@pytest.fixture
def in_1970() -> tuple[Path, dict[str, str]]:
    """Return the mount and variables that set a program's clock to 1970, as on a board without a clock."""
    tools.require("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    variables = {"LD_PRELOAD": "/faketime.so", "FAKETIME": "@1970-01-02 00:00:00"}
    return library, {**variables, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"}


def test_a_clock_in_1970_is_named_and_once_it_is_set_all_is_well(
    make: Make, server: CloudServer, in_1970: tuple[Path, dict[str, str]]
) -> None:
    library, environment = in_1970
    token = server.make_token("young")
    young = make("young", token, **environment)
    young.mount(library, "/faketime.so")
    young.start()
    assert young.wait_exit() != 0
    assert re.search("clock", young.output())
    assert "Traceback" not in young.output()
    grown = make("young", token)
    grown.start()
    server.wait_attached("young")
    grown.remove()
    young.start()
    young.wait_output("clock")
    assert young.running
    young.remove()
    grown.start()
    server.wait_attached("young")


# Ends.


def test_sigterm_lets_a_stream_finish(make: Make, server: CloudServer) -> None:
    agent = make("drained")
    agent.start()
    server.wait_attached("drained")
    answer = server.connect_tls(f"drained:{ECHO}")
    assert answer.echoes(b"before")
    stopping = Process("stop", agent.command("stop", f"--time={STOP_SECONDS}"), agent.volume.parent)
    stopping.start()
    agent.wait_output('"stopping"')
    assert answer.echoes(b"the last words")
    answer.socket.close()
    assert not stopping.wait_running(5)
    assert agent.exit_code() == 0


def test_sigterm_ends_streams_that_do_not_before_docker_kills(make: Make, server: CloudServer) -> None:
    agent = make("stubborn")
    agent.start()
    server.wait_attached("stubborn")
    with server.connect_tls(f"stubborn:{ECHO}") as answer:
        assert answer.echoes(b"before")
        began = time.monotonic()
        assert agent.stop(patience_seconds=STOP_SECONDS) == 0
        assert time.monotonic() - began < STOP_SECONDS
        with pytest.raises((ConnectionResetError, ssl.SSLError)):  # an end that looks complete would be wrong
            while answer.socket.recv(100):
                pass
            pytest.fail("it ended as if it were complete")


def test_sigterm_ends_one_that_still_joins(make: Make) -> None:
    agent = make("early", QANAT_SERVER=NOWHERE, QANAT_SESSION_CONNECT_TIMEOUT_SECONDS="60")
    agent.start()
    agent.wait_output("PASS +token")
    began = time.monotonic()
    assert agent.stop(patience_seconds=STOP_SECONDS) == 128 + 15
    assert time.monotonic() - began < 3


def test_killed_and_made_again_it_is_the_same_node_without_a_token(make: Make, server: CloudServer) -> None:
    agent = make("lasting")
    agent.start()
    server.wait_attached("lasting")
    key = (agent.volume / "node.pem").read_bytes()
    agent.kill()
    again = make("lasting", "used up and gone")
    again.start()
    again.wait_output("attached to")
    server.wait_attached("lasting")
    assert (again.volume / "node.pem").read_bytes() == key
    check_echo(server, "lasting")


def test_a_server_that_is_killed_and_made_again_goes_on(make: Make, server: CloudServer) -> None:
    agent = make("faithful", QANAT_SESSION_RETRY_MAX_SECONDS="1")
    agent.start()
    server.wait_attached("faithful")
    before = server.trust_file.read_bytes()
    server.container.kill()
    server.run()
    assert "created a new server" not in server.container.output()
    assert server.trust_file.read_bytes() == before
    server.wait_attached("faithful")
    check_echo(server, "faithful")


def test_sigterm_of_a_server_with_streams_ends_before_docker_kills(make: Make, server: CloudServer) -> None:
    agent = make("patient", QANAT_SESSION_RETRY_MAX_SECONDS="1")
    agent.start()
    server.wait_attached("patient")
    with server.connect_tls(f"patient:{ECHO}") as answer:
        assert answer.echoes(b"before")
        began = time.monotonic()
        assert server.container.stop(patience_seconds=STOP_SECONDS) == 0
        assert time.monotonic() - began < STOP_SECONDS
    server.run()
    server.wait_attached("patient")


def check_echo(server: Server, node: str) -> None:
    with server.connect_tls(f"{node}:{ECHO}") as answer:
        assert answer.status == 200
        assert answer.echoes(b"are you there?")
