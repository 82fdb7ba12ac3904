"""A running server: its store, its admin socket, and no other access to the store."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import trio

from certs.authority_folder import save_new
from certs.ca import create_authority
from tests.server.test_process import DEADLINE_SECONDS, attached
from tests.support.pki import authority as pki
from tests.support.processes.servers import SERVER, Site, run_server, running
from tunnel_core.identity import Role
from tunnel_server.commands.server_client import NoServer, ask_server


async def qanat_server(site: Site, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a command beside the server."""
    command = [*SERVER, *arguments, "--config", str(site.config)]
    ran = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    return ran.returncode, (ran.stdout + ran.stderr).decode()


async def test_commands_reach_a_running_server_and_what_they_did_outlives_it(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        site = Site(tmp_path)
        site.write()  # an installation from before there was a store
        async with site.server() as server:
            assert (
                await qanat_server(site, "node", "revoke", "shop-7", "--force", "--yes", "--why", "stolen")
            )[0] == 0
            code, output = await qanat_server(site, "audit", "--json")
            line = json.loads(output)["audit"][-1]
            assert (code, line["kind"], line["node"], line["detail"]) == (0, "revoked", "shop-7", "stolen")
            assert await site.page("/readyz") == (200, "ready\n")
            server.signal(signal.SIGKILL)
            await server.exit_code()
        code, output = await qanat_server(site, "audit", "--json")  # by itself
        assert json.loads(output)["audit"][-1]["node"] == "shop-7"
        async with site.server():
            answer = await ask_server(tmp_path / "admin.sock", "GET", "revocations", {})
            assert [one["subject"] for one in answer["revocations"]] == ["shop-7"]


async def test_https_does_not_lead_to_the_admin_api(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        site = Site(tmp_path)
        site.write()
        async with site.server():
            for leaf in (pki.user_leaf("kim"), pki.node_leaf("edge1")):
                for request in ("GET /api/v1/admin/tokens", "POST /api/v1/admin/nodes/revoke"):
                    status, _, _ = await site.ask(request, leaf)
                    assert status in (403, 404)
            assert await ask_server(tmp_path / "admin.sock", "GET", "revocations", {}) == {"revocations": []}
            assert (tmp_path / "admin.sock").stat().st_mode & 0o777 == 0o600


async def test_a_running_server_applies_a_rotation_at_once(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        site, new = Site(tmp_path), create_authority(pki.TRUST_DOMAIN)
        site.write(new.authority.issue(Role.SERVER, "main", names=("localhost", "127.0.0.1", "::1")))
        save_new(new, tmp_path / "ca")
        (tmp_path / "trust.pem").write_bytes(new.authority.roots_pem)
        user = new.authority.issue(Role.USER, "kim")
        async with site.server() as server:
            assert (await site.ask("GET /api/v1/version", user))[0] == 200
            code, output = await qanat_server(site, "ca", "rotate", "add")
            assert code == 0, output
            await server.line("certificates and roots were read anew")
            code, output = await qanat_server(site, "ca", "rotate", "switch", "--force")
            assert code == 0, output
            assert (await site.ask_with(user, (tmp_path / "trust.pem").read_bytes()))[0] == 200
            with pytest.raises(trio.BrokenResourceError):  # it does not know the new root
                await site.ask("GET /api/v1/version", user)


async def test_a_second_server_on_the_same_data_learns_which_process_has_it(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        site = Site(tmp_path)
        site.write()
        async with site.server() as server:
            second = await run_server(site.config)
            assert second.returncode == 1
            assert f"in use by process {server.process.pid}".encode() in second.stderr


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"no database" * 1000, b"is damaged"), (None, b"cannot be")]
)
async def test_a_store_that_cannot_be_used_is_reported_at_start(
    tmp_path: Path, content: bytes | None, sentence: bytes
) -> None:
    site = Site(tmp_path)
    site.write()
    place = tmp_path / "store.db"
    place.unlink()
    place.mkdir() if content is None else place.write_bytes(content)
    ran = await run_server(site.config)
    assert ran.returncode == 1
    assert sentence in ran.stderr
    assert b"Traceback" not in ran.stderr


async def test_node_events_are_kept_and_takeovers_are_audited(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, agent):
        async with running(agent.process.args) as second:  # type: ignore[arg-type]
            await second.line("attached")
            await server.line("node edge1 attached", after=len(server.lines) - 5)
        server.signal(signal.SIGTERM)
        await server.exit_code()
        async with site.server():
            kept = await ask_server(tmp_path / "admin.sock", "GET", "events", {"node": "edge1"})
            assert [event["kind"] for event in kept["events"]][:2] == ["attached", "taken_over"]
            audit = await ask_server(tmp_path / "admin.sock", "GET", "audit", {"kind": "takeover"})
            assert audit["audit"][0]["node"] == "edge1"


async def test_a_lost_line_of_the_audit_degrades_the_server(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        site = Site(tmp_path)
        site.write()
        (tmp_path / "audit.jsonl").mkdir()
        async with site.server():
            assert (await qanat_server(site, "node", "revoke", "a", "--force", "--yes"))[0] == 0
            assert await site.page("/readyz") == (200, "degraded\n")
            assert "qanat_audit_dropped_total 1.0" in (await site.page("/metrics"))[1]


async def test_where_the_audit_must_be_whole_nothing_is_done_without_it(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        site = Site(tmp_path, '[audit]\non_failure = "refuse"\n')
        site.write()
        (tmp_path / "audit.jsonl").mkdir()
        async with site.server():
            code, output = await qanat_server(site, "node", "revoke", "a", "--force", "--yes")
            assert code == 1
            assert "the audit file cannot be written" in output
            assert await ask_server(tmp_path / "admin.sock", "GET", "revocations", {}) == {"revocations": []}
            assert await site.page("/readyz") == (200, "degraded\n")
            (tmp_path / "audit.jsonl").rmdir()
            assert (await qanat_server(site, "node", "revoke", "a", "--force", "--yes"))[0] == 0
            assert await site.page("/readyz") == (200, "ready\n")


async def test_a_socket_without_a_server_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NoServer, match="cannot be opened: No such file"):
        await ask_server(tmp_path / "admin.sock", "GET", "tokens", {})


async def test_a_shell_gets_the_names_of_nodes(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        site, new = Site(tmp_path), create_authority(pki.TRUST_DOMAIN)
        site.write(new.authority.issue(Role.SERVER, "main", names=("localhost", "127.0.0.1", "::1")))
        save_new(new, tmp_path / "ca")
        (tmp_path / "trust.pem").write_bytes(new.authority.roots_pem)
        async with site.server():
            made = {"chain": new.authority.issue(Role.NODE, "edge1").chain_pem.decode()}
            await ask_server(tmp_path / "admin.sock", "POST", "certificates/record", made)
            assert await completed(site, "node revoke ed") == ["edge1"]
            await ask_server(tmp_path / "admin.sock", "POST", "users/add", {"name": "kim"})
            assert await completed(site, "user disable ki") == ["kim"]
            assert await completed(site, "grant remove lo") == ["loopback"]
            assert await completed(site, "audit --node ot") == []
        assert await completed(site, "node revoke ed") == []  # no server answers


async def completed(site: Site, line: str) -> list[str]:
    """Return the proposals of the program for the last word."""
    words = {"COMP_WORDS": f"qanat-server {line}", "COMP_CWORD": str(len(line.split()))}
    asked = {"_QANAT_SERVER_COMPLETE": "bash_complete", "QANAT_CONFIG": str(site.config)}
    ran = await trio.run_process(SERVER, env={**os.environ, **words, **asked}, capture_stdout=True)
    return [item.removeprefix("plain,") for item in ran.stdout.decode().split()]
