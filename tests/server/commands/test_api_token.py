"""``qanat-server api-token``."""

from __future__ import annotations

from pathlib import Path

from tests.server.commands.test_commands import Command, command
from tunnel_server.auth.api_tokens import digest_of

__all__ = ["command"]


def test_a_token_is_shown_once_listed_and_revoked(command: Command) -> None:
    assert "no user ci is known here" in command("api-token", "create", "ci", "--name", "b", code=1).stderr
    command("user", "add", "ci", "--script")
    lines = command("api-token", "create", "ci", "--name", "build 3", "--ttl", "30d").stdout.splitlines()
    token_id = lines[0].split()[2]
    assert lines[0].endswith("It is shown only this time.")
    assert digest_of(lines[2].strip()) is not None
    assert "ci may open nothing yet. Next:" in lines
    listed = command("api-token", "list", "--user", "ci").stdout
    assert listed.splitlines()[1].split()[:5] == [token_id, "ci", "build", "3", "valid"]
    assert lines[2].strip() not in listed
    assert "There is no API token" in command("api-token", "list", "--user", "operator").stdout
    revoked = command("api-token", "revoke", token_id).stdout
    assert f"Token {token_id} (build 3) is of user ci, valid, never used." in revoked
    assert "is revoked already" in command("api-token", "revoke", token_id).stdout
    assert "there is no API token 'x'" in command("api-token", "revoke", "x", code=1).stderr


def test_a_token_can_go_to_a_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "token"
    made = command.json("api-token", "create", "operator", "--name", "x", "--out", file)
    assert (made["file"], "token" in made, made["next"]) == (str(file), False, [])
    assert digest_of(file.read_text().strip()) is not None
    assert file.stat().st_mode & 0o777 == 0o600
    lost = command("api-token", "create", "operator", "--name", "y", "--out", tmp_path / "no/t", code=1)
    assert "the token is lost, create another" in lost.stderr
