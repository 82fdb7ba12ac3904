"""The README's two commands, as it has them, on a Debian with git, Python and venv and nothing else."""

from __future__ import annotations

import pytest

from tests.e2e import tools
from tests.e2e.firsthour.bare_root import bare_root, require

CASES = [("bookworm", "user"), *([("bookworm", "root"), ("trixie", "user")] if tools.is_long() else [])]
"""Debian 12 as an ordinary user, with ``--long`` as root too, and Debian 13."""


@pytest.fixture(autouse=True)
def _able() -> None:
    require()


@pytest.mark.parametrize(("suite", "user"), CASES)
def test_the_demo_and_the_tests_need_nothing_else(suite: str, user: str) -> None:
    as_root = user == "root"
    with bare_root(suite) as root:
        root.clone(as_root=as_root)
        demo = root.run("cd qanat && ./dev demo --once", seconds=300, as_root=as_root)
        assert "PASS  GET http" in demo
        assert "PASS  qanat nodes" in demo
        root.run("cd qanat && ./dev test", seconds=900, as_root=as_root)
