"""The command that gives a new user access."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.server.commands.test_commands import Command, command
from tunnel_core.config import paths
from tunnel_server.commands.grant_hint import grant_hint

__all__ = ["command"]


def test_only_a_user_without_grants_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QANAT_CONFIG", raising=False)
    assert grant_hint("kim", ["kim-1"], None) == []
    assert grant_hint("kim", None, None) == [], "a server of before grants did not say"
    usual = "qanat-server grant add --user kim --verb connect,http,api --node '*' --target '*'"
    assert grant_hint("kim", [], None) == grant_hint("kim", [], paths.server_config_file()) == [usual]
    assert grant_hint("kim", [], Path("/a b")) == [f"{usual} --config '/a b'"]


def test_the_line_that_issue_prints_can_be_pasted_and_is_not_printed_again(
    command: Command, tmp_path: Path
) -> None:
    issued = command("issue", "user", "kim", "--out", tmp_path / "kim.pem").stdout
    assert "kim may open nothing yet, because no grant names this user." in issued
    [line] = [line for line in issued.splitlines() if "grant add" in line]
    program, *arguments = shlex.split(line)
    assert program == "qanat-server"
    assert arguments[-2:] == ["--config", str(command.config)]
    assert "Grant kim-1: kim may api, connect, http on * to *." in command(*arguments[:-2]).stdout
    again = command("issue", "user", "kim", "--out", tmp_path / "k2.pem").stdout
    assert "grant" not in again
    node = command.json("issue", "node", "edge1", "--out", tmp_path / "edge1.pem")
    assert not [step for step in node["next"] if "grant" in step]  # type: ignore[attr-defined]
