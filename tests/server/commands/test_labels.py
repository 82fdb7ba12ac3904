"""``qanat-server node label`` and ``node labels``."""

from __future__ import annotations

from tests.server.commands.test_commands import Command, command

__all__ = ["command"]


def test_labels_are_set_listed_and_removed(command: Command) -> None:
    assert "No node has a label" in command("node", "labels").stdout
    unknown = command("node", "label", "shop-7", "site=hamburg", code=1).stderr
    assert "no node shop-7 is known here" in unknown
    command("token", "create", "--node", "shop-7")
    output = command("node", "label", "shop-7", "site=hamburg", "tier=1").stdout
    assert output == "Node shop-7 has site=hamburg, tier=1.\n"
    again = command("node", "label", "shop-7", "tier=1").stdout
    assert again == "No change: node shop-7 has site=hamburg, tier=1.\n"
    assert command.json("node", "label", "shop-7", "tier-", "site-")["labels"] == {}
    command("node", "label", "shop-8", "site=bremen", "--force")
    assert command("node", "labels").stdout.splitlines()[1].split() == ["shop-8", "site=bremen"]
    assert "is not a label" in command("node", "label", "shop-8", "Site=x", code=2).stderr
