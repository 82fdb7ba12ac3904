"""``qanat-server group``."""

from __future__ import annotations

from tests.server.commands.test_commands import Command, command

__all__ = ["command"]


def test_a_group_its_members_and_its_end(command: Command) -> None:
    for name in ("kim", "robin"):
        command("user", "add", name)
    assert "There is no group" in command("group", "list").stdout
    assert "group add-member ops USER" in command("group", "add", "ops", "--note", "on call").stdout
    added = command("group", "add-member", "ops", "kim", "robin").stdout
    assert added == "Added kim, robin to group ops. It has 2 members.\n"
    assert command("group", "add-member", "ops", "kim").stdout == "No change. It has 2 members.\n"
    removed = command.json("group", "remove-member", "ops", "kim")
    assert removed == {"group": "ops", "changed": ["kim"], "members": ["robin"]}
    assert command("group", "list").stdout.splitlines()[1].split() == ["ops", "robin"]
    refused = command("group", "remove", "ops", code=2).stderr
    assert "Group ops has 1 member: robin." in refused
    assert command("group", "remove", "ops", "--yes").stdout.endswith("Removed group ops.\n")
    assert "there is no group ops" in command("group", "remove", "ops", "--yes", code=1).stderr


def test_wrong_names(command: Command) -> None:
    assert "is not a group's name" in command("group", "add", "a,b", code=2).stderr
    command("group", "add", "ops")
    assert "is not a user name" in command("group", "add-member", "ops", "Kim", code=2).stderr
    unknown = command("group", "add-member", "ops", "kim", code=1).stderr
    assert "no user kim is known here; add it: qanat-server user add kim" in unknown
    assert "did you mean ops?" in command("group", "add-member", "opps", "operator", code=1).stderr
