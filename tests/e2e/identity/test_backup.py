"""One file restores a server on an empty machine, without any work at the nodes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.e2e.identity.conftest import ALLOW, HomeMaker
from tests.e2e.identity.homes import Home
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import Server
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until


def _restore(server: Server, file: Path, *options: str, code: int = 0) -> str:
    done = run(tools.program("qanat-server"), "restore", str(file), "--place", str(server.folder), *options)
    assert done.returncode == code, f"{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _echoes(server: Server, node: str) -> bool:
    with server.connect(f"{node}:{ECHO}") as answer:
        return answer.status == 200 and answer.echoes(b"are you there?")


@pytest.fixture
def nodes(server: Server, home: HomeMaker) -> list[Home]:
    """Return nodes, one of which is revoked."""
    made = [home(node) for node in ("early", "out", "late")]
    for one in made[:2]:
        one.join(server, server.token(one.node), *ALLOW)
        one.start()
    server.tell("nodes/revoke", name="out")
    return made


def test_agents_come_back_to_a_server_that_was_restored_elsewhere(
    server: Server, nodes: list[Home], tmp_path: Path
) -> None:
    early, out, late = nodes
    open_token = server.token("late")  # another name than the one it joins with
    user = server.issue_user("kim", tmp_path / "kim.pem")
    with server.connect_tls(f"early:{ECHO}", user) as stream:
        server.command_line("backup", str(tmp_path / "qanat.tar"))  # the server runs, and so do streams
        assert stream.echoes(b"meanwhile")
    late.join(server, server.token("late"), *ALLOW)
    late.start()
    server.tell("users/revoke", name="kim")
    files = {one.node: one.bundle.read_bytes() for one in (early, late)}
    processes = {one.node: one.process.pid for one in (early, late)}

    server.process.kill()
    lost = server.folder.with_name("burnt")
    server.folder.rename(lost)  # the other machine has nothing but the file
    server.folder.mkdir()
    output = _restore(server, tmp_path / "qanat.tar")
    assert re.search(r"tokens? that (was|were) open at the backup (is|are) revoked", output)
    server.start()
    for one in (early, late):
        wait_until(lambda name=one.node: _echoes(server, name), f"{one.node} to be back", deadline_seconds=60)
        assert (one.bundle.read_bytes(), one.process.pid) == (files[one.node], processes[one.node])
    out.process.kill()
    out.process.start()
    out.process.wait_log("cannot attach.*revoked", deadline_seconds=15)
    assert "revoked" in late.try_join(server, open_token, "--again").stdout
    with server.connect_tls(f"early:{ECHO}", user) as forgotten:
        assert forgotten.status == 200, "the backup is older than the revocation: which is why it warns"

    server.process.kill()
    shutil.rmtree(server.folder)
    lost.rename(server.folder)
    warned = _restore(server, tmp_path / "qanat.tar", code=2)
    assert "nothing was changed" in warned
    assert "qanat-server user revoke kim" in warned
    output = _restore(server, tmp_path / "qanat.tar", "--force")
    assert "REVOCATIONS NEWER THAN THE BACKUP" in output
    assert "qanat-server user revoke kim" in output
    server.command_line("user", "revoke", "kim", "--force", "--yes")
    server.start()
    wait_until(lambda: _echoes(server, "early"), "the node to be back once more", deadline_seconds=60)
    with server.connect_tls(f"early:{ECHO}", user) as refused:
        assert refused.status == 403
