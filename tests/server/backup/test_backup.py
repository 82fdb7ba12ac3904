"""Backups: their content, a server restored from one, and the report of what was lost."""

from __future__ import annotations

import io
import json
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from certs.authority_folder import load_authority
from certs.bundle import read_bundle
from tests.server.commands.test_commands import Command
from tests.server.commands.test_init import Result, run
from tests.server.store.test_crash import kept as kept_revocations
from tests.server.store.test_crash import writing
from tests.server.store.writing import AT_ONCE
from tunnel_core.config.loader import load
from tunnel_server.backup.taking import take_backup
from tunnel_server.config import ServerConfig
from tunnel_server.store.lock import hold_store


@pytest.fixture
def command(tmp_path: Path) -> Command:
    places = ("--data-dir", tmp_path / "d", "--config", tmp_path / "etc" / "server.toml")
    assert run("init", "--name", "tunnel.example.com", *places).exit_code == 0
    made = Command(tmp_path / "d")
    made.config = tmp_path / "etc" / "server.toml"
    return made


def restore(folder: Path, *options: str) -> Result:
    """Restore ``b.tar``, with the places of the tests allowed."""
    allowed = (option for name in ("d", "etc", "s") for option in ("--place", folder / name))
    return run("restore", *allowed, *options, folder / "b.tar")


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file.relative_to(folder)): (stat.S_IMODE(file.stat().st_mode), file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith("store.")
    }


def test_a_server_is_made_again_on_an_empty_machine(command: Command, tmp_path: Path) -> None:
    command("ca", "rotate", "add")
    command("issue", "node", "edge1", "--out", tmp_path / "e.pem")
    command("node", "revoke", "shop-7", "--force", "--yes")
    token = command.json("token", "create", "--node", "shop-7")["id"]
    (command.folder / "audit.jsonl").unlink()
    (command.folder / "operator.pem").unlink()  # another user's, not the server's
    before = {folder: everything(tmp_path / folder) for folder in ("d", "etc")}
    authority = load_authority(command.folder / "ca")
    output = command("backup", tmp_path / "b.tar").stdout
    assert "has the authority's keys" in output
    assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600

    shutil.rmtree(tmp_path / "d")
    shutil.rmtree(tmp_path / "etc")
    result = restore(tmp_path)
    assert result.exit_code == 0, result.output + result.stderr
    assert "1 token that was open at the backup is revoked: create a new one" in result.stdout
    assert "NEWER" not in result.stdout
    (command.folder / "audit.jsonl").unlink(missing_ok=True)
    assert {folder: everything(tmp_path / folder) for folder in ("d", "etc")} == before
    assert load_authority(command.folder / "ca") == authority
    serial = command.json("cert", "list", "--node", "edge1")["certificates"][0]["serial"]  # type: ignore[index]
    assert command("cert", "list").stdout.count(serial) == 1
    states = {one["id"]: one["state"] for one in command.json("token", "list")["tokens"]}  # type: ignore[attr-defined]
    assert states == {token: "revoked"}
    kinds = [line["kind"] for line in command.json("audit")["audit"]]  # type: ignore[attr-defined]
    assert kinds[-2:] == ["token_revoked", "restored"]
    assert read_bundle(tmp_path / "e.pem").roots_pem == authority.roots_pem


def test_revocations_newer_than_the_backup_are_reported(command: Command, tmp_path: Path) -> None:
    command("node", "revoke", "known", "--force", "--yes")
    command("backup", tmp_path / "b.tar")
    command("node", "revoke", "shop-7", "--force", "--yes")
    command("user", "revoke", "kim@example.com", "--force", "--yes")
    command("cert", "revoke", "abcd", "--force", "--yes")
    lost = [
        "qanat-server node revoke shop-7 --force --yes",
        "qanat-server user revoke kim@example.com --force --yes",
        "qanat-server cert revoke abcd --force --yes",
    ]
    before = everything(tmp_path)
    refused = restore(tmp_path)
    assert refused.exit_code == 2
    assert f"because these exist: {command.folder / 'audit.jsonl'}, {command.folder / 'ca'}" in refused.stderr
    assert everything(tmp_path) == before
    forced = restore(tmp_path, "--force")
    assert forced.exit_code == 0, forced.stderr
    for output in (refused.stderr, forced.stdout):
        assert [line.strip() for line in output.splitlines() if " revoke " in line] == lost
    assert "shop-7" not in command("audit", "--kind", "revoked").stdout
    (kept,) = command.folder.glob("before-restore-*")
    assert {"ca", "store.db", "server.pem", "server.toml"} <= {path.name for path in kept.iterdir()}
    again = restore(tmp_path, "--force", "--json")
    assert json.loads(again.stdout)["lost_revocations"] == []


def test_a_backup_during_writes_holds_one_consistent_state(command: Command, tmp_path: Path) -> None:
    config = load(command.config, ServerConfig)
    with writing(command.folder, 0) as process:
        assert process.stdout is not None
        output = [process.stdout.readline() for _ in range(200)]
        take_backup(config, command.config, tmp_path / "b.tar")
        process.kill()
    shutil.rmtree(command.folder)
    command.config.unlink()
    assert restore(tmp_path).exit_code == 0
    numbers = kept_revocations(command.folder)
    assert {int(line.split()[1]) for line in output} <= numbers
    assert len(numbers) >= 200 > AT_ONCE


def test_a_backup_replaces_nothing_and_leaves_nothing_behind(command: Command, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("mine")
    assert "a backup does not overwrite a file" in command("backup", tmp_path / "b.tar", code=2).stderr
    assert (tmp_path / "b.tar").read_text() == "mine"
    (command.folder / "server.key").unlink()
    output = command("backup", tmp_path / "c.tar", code=1).stderr
    assert f"no backup was made: {command.folder / 'server.key'}: No such file" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "d", "etc"]


def test_not_while_a_server_runs(command: Command, tmp_path: Path) -> None:
    command("backup", tmp_path / "b.tar")
    with hold_store(command.folder):
        result = restore(tmp_path, "--force")
    assert result.exit_code == 1
    assert "stop it first" in result.stderr


def change(archive: Path, alter: Callable[[str, bytes], bytes]) -> None:
    """Rewrite an archive. ``alter`` returns the new content of each member."""
    with tarfile.open(archive) as old:
        members = [(info, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
    with tarfile.open(archive, "w") as new:
        for info, content in members:
            altered = alter(info.name, content)
            info.size = len(altered)
            new.addfile(info, io.BytesIO(altered))


def in_manifest(**changes: object) -> Callable[[str, bytes], bytes]:
    def alter(name: str, content: bytes) -> bytes:
        return json.dumps(json.loads(content) | changes).encode() if name == "manifest.json" else content

    return alter


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (lambda name, content: content if name == "manifest.json" else content + b"x", "was changed"),
        (in_manifest(version=2), "newer version"),
        (in_manifest(data_dir="relative"), "an invalid place"),
        (in_manifest(data_dir="/var/../etc"), "an invalid place"),
        (in_manifest(members=[{"path": "/x", "mode": 1, "sha256": ""}] * 99), "names a place twice"),
        (in_manifest(members=[{"path": f"/x{end}", "mode": 1, "sha256": ""} for end in ("", "/y")]), "twice"),
        (in_manifest(config_file="/etc//shadow"), "an invalid place"),
        (in_manifest(config_file="/etc/\x1b[2K"), "an invalid place"),
        (in_manifest(made="now\n/etc/shadow"), "does not have its time of creation"),
        (lambda name, content: content[:0] if name == "manifest.json" else content, "not a readable backup"),
        (in_manifest(members=7), "is not a readable backup"),
        (lambda name, content: b"{", "is not a readable backup"),
    ],
)
def test_a_damaged_backup_changes_nothing(
    command: Command, tmp_path: Path, alter: Callable[[str, bytes], bytes], sentence: str
) -> None:
    command("backup", tmp_path / "b.tar")
    change(tmp_path / "b.tar", alter)
    before = everything(tmp_path)
    result = restore(tmp_path, "--force")
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert everything(tmp_path) == before


@pytest.mark.parametrize("cut", [0, 100, 5000, 20_000])
def test_a_backup_that_was_cut_off_changes_nothing(command: Command, tmp_path: Path, cut: int) -> None:
    command("backup", tmp_path / "b.tar")
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:cut])
    before = everything(tmp_path)
    result = restore(tmp_path, "--force")
    assert result.exit_code == 2
    assert everything(tmp_path) == before


def test_a_path_that_is_no_file_is_reported(tmp_path: Path) -> None:
    result = run("restore", tmp_path / "nothing")
    assert result.exit_code == 1
    assert "nothing: No such file or directory" in result.stderr


async def test_a_backup_of_a_running_server_makes_another_that_agents_know(tmp_path: Path) -> None:
    from tests.server.admin.test_running import qanat_server
    from tests.server.test_process import DEADLINE_SECONDS
    from tests.support.processes.servers import Site

    with trio.fail_after(DEADLINE_SECONDS):
        site = Site(tmp_path / "s")
        site.folder.mkdir()
        site.write()
        async with site.server():
            assert (await qanat_server(site, "node", "revoke", "shop-7", "--force", "--yes"))[0] == 0
            code, output = await qanat_server(site, "backup", str(tmp_path / "b.tar"))
            assert code == 0, output
        shutil.rmtree(site.folder)
        assert restore(tmp_path).exit_code == 0
        async with site.server() as server, site.agent("localhost:1"):
            await server.line("node edge1 attached")
            assert "shop-7" in (await qanat_server(site, "audit"))[1]
