"""A real sshd at an edge, reached with ``ssh -o ProxyCommand='qanat connect NODE TARGET'``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ssh, tools
from tests.support.processes.processes import run
from tests.support.processes.site import Site

PORT = 2222
COPY_BYTES = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def keys(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the keys, while sshd runs at edge1."""
    tools.require("ssh", "scp", "sshd", "ssh-keygen")
    folder = tmp_path_factory.mktemp("ssh")
    ssh.make_keys(folder)
    program = ssh.sshd(folder, PORT, site.network.edge(1))
    program.start()
    try:
        program.wait_log("Server listening")
        site.agent.configure(site.server, allow=[f"localhost:{PORT}", "localhost:2201"])
        site.agent.restart()
        yield folder
    finally:
        program.kill()


def _through_us(site: Site) -> str:
    return f"{tools.program('qanat')} --bundle {site.server.user_bundle} connect edge1 localhost:{PORT}"


def test_a_command_runs_at_the_edge(site: Site, keys: Path) -> None:
    argv = [*ssh.client("ssh", keys, _through_us(site)), "root@edge1", "hostname; cat; exit 7"]
    done = run(*argv, namespace=site.network.cloud, stdin=b"said on standard input\n")
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[1:] == ["said on standard input"]


def test_qanat_ssh_is_ssh_itself(site: Site, keys: Path) -> None:
    known_hosts = keys / "known_by_node"
    known_hosts.write_text(f"edge1 {(keys / 'host_key.pub').read_text()}")
    argv = [tools.program("qanat"), "--bundle", str(site.server.user_bundle), "ssh", "root@edge1"]
    argv += ["-F", "none", "-i", str(keys / "user_key"), "-p", str(PORT), "-o", "BatchMode=yes"]
    argv += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"]
    done = run(*argv, "cat; exit 7", namespace=site.network.cloud, stdin=b"said on standard input\n")
    assert (done.returncode, done.stdout) == (7, "said on standard input\n"), done.stderr


def test_64_mib_are_copied_there_and_back(site: Site, keys: Path, folder: Path) -> None:
    there, back = folder / "there", folder / "back"
    original = folder / "original"
    original.write_bytes(os.urandom(COPY_BYTES))
    scp = ssh.client("scp", keys, _through_us(site))
    for source, destination in ((str(original), f"root@edge1:{there}"), (f"root@edge1:{there}", str(back))):
        done = run(*scp, source, destination, namespace=site.network.cloud, deadline_seconds=120)
        assert done.returncode == 0, done.stderr
    assert _hash(original) == _hash(there) == _hash(back)


def test_ssh_shows_why_a_node_cannot_be_reached(site: Site, keys: Path) -> None:
    nowhere = _through_us(site).replace("connect edge1", "connect edge7")
    done = run(*ssh.client("ssh", keys, nowhere), "root@edge7", "true", namespace=site.network.cloud)
    assert done.returncode == 255
    assert "edge7" in done.stderr


def _hash(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
