"""``qanat-server grant``: what it adds, shows, applies and refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.server.commands.test_commands import Command, command

__all__ = ["command"]
EVERYTHING = ("--node", "*", "--target", "*")


def test_a_grant_is_added_listed_and_removed(command: Command) -> None:
    added = command("grant", "add", "--user", "kim", "--verb", "connect,http", *EVERYTHING).stdout
    assert added.splitlines()[:2] == [
        "Grant kim-1: kim may connect, http on * to *.",
        "Note: no user kim is known here yet.",
    ]
    assert "qanat-server grant remove kim-1" in added
    again = command(
        "grant", "add", "--user", "kim", "--verb", "http", "--verb", "connect", *EVERYTHING
    ).stdout
    assert "Grant kim-1 exists already" in again
    rows = [line.split() for line in command("grant", "list").stdout.splitlines()]
    assert rows[1:] == [
        ["operator", "operator", "*", "*", "*"],
        ["loopback", "loopback", "http", "*", "*"],
        ["kim-1", "kim", "connect,", "http", "*", "*"],
    ]
    listed = command.json("grant", "list", "--user", "kim")["grants"]
    assert isinstance(listed, list)
    assert [grant["id"] for grant in listed] == ["kim-1"]
    assert "User lee has no grant" in command("grant", "list", "--user", "lee").stdout
    refused = command("grant", "remove", "kim-1", code=2).stderr
    assert "- kim-1: kim may connect, http on * to *" in refused
    assert command("grant", "remove", "kim-1", "--yes").stdout.endswith("Removed 1 grant.\n")
    assert "there is no grant 'kim-1'" in command("grant", "remove", "kim-1", "--yes", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--user", "kim"], "has no verbs"),
        (["--user", "kim", "--verb", "logs", *EVERYTHING], "raw connect cannot tell logs from exec"),
        (["--verb", "connect", *EVERYTHING], "names nobody"),
        (["--user", "kim", "--verb", "connect", "--node", "*"], "has no targets"),
        (["--user", "kim", "--verb", "http", "--node", "*", "--target", "22"], "name a service"),
        (["--user", "kim", "--verb", "admin", "--node", "*"], "the verb admin concerns no node"),
        (["--id", "A B", "--user", "kim", "--verb", "admin"], "is not the id of a grant"),
    ],
)
def test_grants_that_make_no_sense(command: Command, arguments: list[str], sentence: str) -> None:
    assert sentence in command("grant", "add", *arguments, code=2).stderr
    assert len(command("grant", "list").stdout.splitlines()) == 3


def test_a_file_is_shown_as_a_difference_and_applied_once(command: Command, tmp_path: Path) -> None:
    command("grant", "add", "--user", "kim", "--verb", "connect", *EVERYTHING)
    command("grant", "add", "--id", "old", "--user", "lee", "--verb", "connect", *EVERYTHING)
    text = command("grant", "list", "--toml").stdout
    assert [grant["id"] for grant in tomllib.loads(text)["grant"]] == ["operator", "loopback", "kim-1", "old"]
    file = tmp_path / "grants.toml"
    file.write_text(text)
    same = command("grant", "apply", file, "--prune").stdout
    assert same == "Nothing to change: 4 grants of the file unchanged.\n"

    file.write_text(
        text.partition('[[grant]]\nid = "old"')[0].replace('["kim"]', '["kim", "robin"]')
        + '[[grant]]\nid = "new"\ngroups = ["ops"]\nverbs = ["api"]\nnodes = ["site=hamburg"]\n'
    )
    difference = [
        "+ new: group ops may api on site=hamburg",
        "~ kim-1:",
        '    - users = ["kim"]',
        '    + users = ["kim", "robin"]',
        "- old: lee may connect on * to *",
        "2 grants of the file unchanged.",
    ]
    dry = command("grant", "apply", file, "--prune", "--dry-run").stdout
    assert dry.splitlines() == difference
    refused = command("grant", "apply", file, "--prune", code=2).stderr
    assert "Add --yes" in refused
    assert len(command("grant", "list").stdout.splitlines()) == 5
    applied = command("grant", "apply", file, "--prune", "--yes").stdout
    assert applied.splitlines() == [*difference, "Applied."]
    assert command.json("grant", "apply", file, "--prune")["applied"] is False
    assert [line.split()[0] for line in command("grant", "list").stdout.splitlines()[1:]] == [
        *("operator", "loopback", "kim-1", "new")
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[[grant]", "not TOML"),
        (b"[[grants]]\n", "'grants' is unknown here"),
        (b'[[grant]]\nid = "a"\nusers = ["kim"]\nverbs = [1979-05-27]\n', "not a text in quotes"),
        (b"\xff", "can't decode"),
        (b'[[grant]]\nid = "a"\nverbs = ["admin"]\nusers = ["kim"]\n' * 2, "two grants have the id a"),
        (b"#" * (2 * 1024 * 1024 + 1), "is larger than"),
    ],
)
def test_a_file_that_is_no_file_of_grants(
    command: Command, tmp_path: Path, text: bytes, sentence: str
) -> None:
    file = tmp_path / "g.toml"
    file.write_bytes(text)
    refused = command("grant", "apply", file, "--yes", code=2).stderr
    assert str(file) in refused
    assert sentence in refused
    missing = command("grant", "apply", tmp_path / "none", "--yes", code=1).stderr
    assert "No such file" in missing


def test_json_has_what_a_script_needs(command: Command) -> None:
    made = command.json("grant", "add", "--user", "kim", "--verb", "admin", "--id", "boss")
    assert (made["again"], made["text"]) == (False, "kim may admin")
    removed = json.loads(command("grant", "remove", "boss", "--yes", "--json").stdout)
    assert [grant["id"] for grant in removed["removed"]] == ["boss"]
    assert "either --toml or --json" in command("grant", "list", "--toml", "--json", code=2).stdout
