"""Every command with every fault of its files, rights and descriptors: no traceback, always a message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.commands.walk import (
    COMMANDS,
    GROUPS,
    LOCALES,
    Walker,
    descriptor_faults,
    file_faults,
    installed,
    walk_all,
    walk_odd_names,
)


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walker]:
    with installed(tmp_path_factory.mktemp("walk")) as walker:
        yield walker


@pytest.mark.parametrize("program", GROUPS)
def test_descriptors(walker: Walker, program: str) -> None:
    wrong = walk_all(walker, descriptor_faults(program))
    assert not wrong, wrong


@pytest.mark.parametrize("program", GROUPS)
def test_files(walker: Walker, program: str) -> None:
    wrong = walk_all(walker, file_faults(program, walker.folder))
    assert not wrong, wrong


@pytest.mark.parametrize("locale", LOCALES, ids=["the tests' locale", "C"])
def test_names_that_are_no_text(tmp_path: Path, locale: Mapping[str, str]) -> None:
    wrong = walk_odd_names(tmp_path, COMMANDS, locale)
    assert not wrong, wrong
