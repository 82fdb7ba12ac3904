"""The form that the tests run: ``./dev compiled test`` runs compiled modules, ``./dev test`` their source."""

from __future__ import annotations

import importlib
import os
import tomllib
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from compiling.backend import get_requires_for_build_wheel
from tests.test_fences import DECISIONS
from tunnel_core.version import COMPILED, PURE, form

PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
MODULES: list[str] = PROJECT["tool"]["qanat"]["compiled"]
WANTED = COMPILED if os.environ.get("QANAT_COMPILE") == "1" else PURE


@pytest.mark.parametrize("name", MODULES)
def test_each_module_runs_in_the_form_that_is_tested(name: str) -> None:
    spec = importlib.import_module(name).__spec__
    assert spec
    assert type(spec.loader) is (ExtensionFileLoader if WANTED == COMPILED else SourceFileLoader)


def test_the_programs_name_the_form() -> None:
    assert form() == WANTED


def test_only_modules_that_decide_are_compiled() -> None:
    assert sorted(set(MODULES)) == MODULES
    assert not set(MODULES) - set(DECISIONS)


@pytest.mark.parametrize(("variable", "count"), [("1", 1), ("0", 0)])
def test_the_compiler_is_the_one_that_checks_the_types(
    monkeypatch: pytest.MonkeyPatch, variable: str, count: int
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setenv("QANAT_COMPILE", variable)
    found = get_requires_for_build_wheel()
    assert len(found) == count
    assert set(found) < set(PROJECT["project"]["optional-dependencies"]["dev"])
