"""``qanat-server user``: add, list, disable, enable, passwd."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.server.commands.test_commands import Command, command
from tunnel_server.auth.passwords import verify_password
from tunnel_server.main import main
from tunnel_server.store.database import open_reader

__all__ = ["command"]


def stored_hash(command: Command, name: str) -> str | None:
    reader = open_reader(command.folder / "store.db")
    row = reader.execute("SELECT password_hash FROM users WHERE name = ?", (name,)).fetchone()
    reader.close()
    found: str | None = row["password_hash"]
    return found


def test_a_new_user_may_do_nothing_and_the_output_says_so(command: Command) -> None:
    output = command("user", "add", "kim@example.com").stdout
    assert "Added person kim@example.com. kim@example.com may open nothing yet." in output
    [paste] = [line.strip() for line in output.splitlines() if "grant add" in line]
    assert paste == (
        "qanat-server grant add --user kim@example.com --verb connect,http,api --node '*' --target '*'"
        f" --config {command.config}"
    )
    script = command.json("user", "add", "ci", "--script", "--note", "nightly")
    assert (script["added"], script["kind"], script["grants"]) == ("ci", "script", [])
    assert "exists already" in command("user", "add", "ci", code=2).stderr
    listed = command("user", "list", "--wide").stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["USER", "ci", "kim@example.com", "operator"]
    assert "nightly" in listed


def test_disabling_asks_and_enabling_undoes_it(command: Command) -> None:
    command("user", "add", "kim")
    refused = command("user", "disable", "kim", code=2)
    assert "Nothing was changed: there is no terminal for a question. Add --yes to do it." in refused.stderr
    assert "enabled" in command("user", "list").stdout
    assert "is disabled. To undo this" in command("user", "disable", "kim", "--yes").stdout
    assert "is disabled already" in command("user", "disable", "kim", "--yes").stdout
    assert "disabled since" in command("user", "list").stdout
    assert command.json("user", "enable", "kim") == {"name": "kim", "disabled": False, "again": False}
    assert "was not disabled" in command("user", "enable", "kim").stdout
    assert "did you mean kim?" in command("user", "enable", "kin", code=1).stderr


def test_a_password_comes_from_a_file_and_is_stored_as_a_hash(command: Command, tmp_path: Path) -> None:
    command("user", "add", "kim")
    file = tmp_path / "secret"
    file.write_text("correct horse battery\nmore\n")
    output = command("user", "passwd", "kim", "--password-file", file).stdout
    assert output == "Set the password of user kim.\n"
    assert verify_password(stored_hash(command, "kim"), "correct horse battery")
    assert b"correct horse" not in (command.folder / "store.db").read_bytes()
    assert "password" in command("user", "list").stdout
    assert command.json("user", "passwd", "kim", "--remove") == {"name": "kim", "has_password": False}
    assert stored_hash(command, "kim") is None
    assert "password_set" in command("audit").stdout


@pytest.mark.parametrize(
    ("content", "arguments", "code", "sentence"),
    [
        (b"short", ["--password-file", "{file}"], 2, "at least 12 characters; nothing was changed"),
        (b"\xff" * 20, ["--password-file", "{file}"], 2, "is not text in UTF-8"),
        (b"x", ["--password-file", "{file}.not"], 1, "cannot be read"),
        (b"x", ["--password-file", "{file}", "--remove"], 2, "either --remove or --password-file"),
        (b"x", [], 2, "there is no terminal for a prompt"),
    ],
)
def test_passwords_that_are_refused(
    command: Command, tmp_path: Path, content: bytes, arguments: list[str], code: int, sentence: str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    given = [argument.format(file=file) for argument in arguments]
    assert sentence in command("user", "passwd", "operator", *given, code=code).stderr
    assert stored_hash(command, "operator") is None


def test_a_password_comes_from_standard_input(command: Command) -> None:
    arguments = ["user", "passwd", "operator", "--password-file", "-", "--config", str(command.config)]
    result = CliRunner().invoke(main, arguments, input="a long enough one\n")
    assert result.exit_code == 0, result.output
    assert verify_password(stored_hash(command, "operator"), "a long enough one")
