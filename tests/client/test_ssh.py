"""``qanat ssh`` replaces itself with the machine's ssh, with Qanat's options and the user's."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.client.test_commands import QANAT, environment
from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle
from tests.support.processes.tools_here import need

FAKE_SSH = f"""#!/bin/sh
grep SigIgn: /proc/$$/status
{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"
exit 42
"""
SIGPIPE_BIT = 1 << 12


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        yield server


async def ssh(folder: Path, *arguments: str, path: Path | str) -> subprocess.CompletedProcess[bytes]:
    environ = environment(folder) | {"PATH": str(path)}
    with trio.fail_after(20):
        return await trio.run_process(
            [*QANAT, *arguments], env=environ, capture_stdout=True, capture_stderr=True, check=False
        )


def fake_ssh(folder: Path) -> str:
    place = folder / "bin"
    place.mkdir()
    (place / "ssh").write_text(FAKE_SSH)
    (place / "ssh").chmod(0o755)
    return f"{place}:/usr/bin:/bin"


async def test_ssh_gets_the_way_the_name_and_its_own_arguments(server: FakeServer, tmp_path: Path) -> None:
    bundle = str(tmp_path / "kim's 100%.pem")
    shutil.copy(tmp_path / "kim.pem", bundle)
    arguments = ["pi@edge1", "-p", "2222", "-L", "8080:localhost:80", "uptime", "--pretty"]
    ran = await ssh(tmp_path, "--bundle", bundle, "ssh", *arguments, path=fake_ssh(tmp_path))
    assert ran.returncode == 42, ran.stderr
    ignored, output = ran.stdout.splitlines()
    words = json.loads(output)
    assert words[4:] == arguments
    assert words[2:4] == ["-o", "HostKeyAlias=edge1"]
    assert not int(ignored.split()[1], 16) & SIGPIPE_BIT
    name, _, command = words[1].partition("=")
    assert (words[0], name) == ("-o", "ProxyCommand")
    # What ssh fills in, and then a shell reads.
    called = shlex.split(command.replace("%%", "\0").replace("%p", "2222").replace("\0", "%"))
    assert called == [
        sys.executable,
        "-P",
        "-m",
        "tunnel_client",
        "connect",
        "--bundle",
        bundle,
        "edge1",
        "2222",
    ]


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("edge_1", "'edge_1' is not a node name"),
        ("-v", "-v comes before NODE; write ssh's options after NODE"),
        ("-oProxyCommand=x@edge1", "comes before NODE"),
        ("pi@", "'' is not a node name"),
    ],
)
async def test_an_invalid_node_is_refused(
    server: FakeServer, tmp_path: Path, node: str, sentence: str
) -> None:
    ran = await ssh(tmp_path, "ssh", node, path=fake_ssh(tmp_path))
    assert ran.returncode == 2
    assert sentence in ran.stderr.decode()


async def test_a_machine_without_ssh_gets_the_name_of_the_package(server: FakeServer, tmp_path: Path) -> None:
    ran = await ssh(tmp_path, "ssh", "edge1", path=tmp_path / "empty")
    assert ran.returncode == 2
    assert ran.stderr.startswith(b"qanat: ssh is not installed; install it: apt-get install openssh-client")


async def test_the_real_ssh_comes_through_the_tunnel(server: FakeServer, tmp_path: Path) -> None:
    need("ssh")
    heard = []

    async def banner(stream: trio.abc.HalfCloseableStream, first: bytes) -> None:
        await stream.send_all(b"SSH-2.0-fake\r\n")
        heard.append(first or await stream.receive_some())
        await stream.send_eof()

    server.targets["localhost:2222"] = banner
    ran = await ssh(tmp_path, "ssh", "edge1", "-F", "none", "-p", "2222", "true", path=os.environ["PATH"])
    assert ran.returncode == 255, ran.stderr  # ssh's own code for a connection that ended
    assert heard[0].startswith(b"SSH-2.0-OpenSSH")
    assert server.authorities == ["edge1:2222"]
