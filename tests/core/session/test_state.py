"""The states of a session, and the one table of what each means for a request."""

from __future__ import annotations

import ast

import pytest

from tests.test_fences import modules
from tunnel_core.session.state import SessionState, StateCategory, category_of_word

REACHABLE, WAITING, ABSENT = StateCategory.REACHABLE, StateCategory.WAITING, StateCategory.ABSENT


@pytest.mark.parametrize(
    ("word", "category"),
    [
        ("attached", REACHABLE),
        ("degraded", REACHABLE),
        ("grace", WAITING),
        ("ended", ABSENT),
        ("gone", ABSENT),
        ("away", ABSENT),
        ("hibernating", None),
        (None, None),
        ([], None),
    ],
)
def test_each_word_has_one_category(word: object, category: StateCategory | None) -> None:
    assert category_of_word(word) is category


def test_every_state_has_a_category() -> None:
    assert {state.category for state in SessionState} == set(StateCategory)


def compared(node: ast.Compare) -> set[str]:
    """The state words and members of ``SessionState`` that a comparison names."""
    words = {state.value for state in SessionState} | {"gone", "away"}
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and part.value in words:
            found.add(str(part.value))
        elif isinstance(part, ast.Attribute) and ast.unparse(part.value) == "SessionState":
            found.add(part.attr)
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_module_compares_states_one_by_one(module: str) -> None:
    """Such a comparison misses states that are added later: ``degraded`` was one of them."""
    tree = ast.parse(modules()[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            assert not compared(node), f"{module}: {ast.unparse(node)}; ask for the category"
