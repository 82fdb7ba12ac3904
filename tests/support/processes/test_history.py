"""Code of an earlier commit is extracted from a repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.processes import history, tools

_AUTHOR = ["-c", "user.name=kim", "-c", "user.email=kim@example.com", "-c", "commit.gpgsign=false"]


def test_a_path_that_the_commit_lacks_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.require("git")
    repository = tmp_path / "repository"
    (repository / "certs").mkdir(parents=True)
    (repository / "certs/ca.py").write_text("earlier\n")
    for words in (["init", "--quiet"], ["add", "."], [*_AUTHOR, "commit", "--quiet", "--message=one"]):
        subprocess.run(["git", *words], cwd=repository, check=True)  # noqa: S603, S607
    monkeypatch.setattr(history, "ROOT", repository)
    history.extract("HEAD", tmp_path / "found", "certs", "setup.py")
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["certs"]
    assert (tmp_path / "found/certs/ca.py").read_text() == "earlier\n"


def test_a_commit_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    tools.require("git")
    with pytest.raises(AssertionError):
        history.extract("0" * 40, tmp_path, "certs")
