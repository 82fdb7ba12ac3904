"""Every kept input again, so that a fault that a fuzzer found does not return; each target has a folder."""

from __future__ import annotations

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS


@pytest.mark.filterwarnings("ignore::UserWarning")  # the library's, about what it will refuse one day
@pytest.mark.parametrize("target", TARGETS)
def test_every_kept_input_finds_no_fault(target: str) -> None:
    inputs = corpus.inputs_of(target)
    assert inputs
    for data in inputs:
        TARGETS[target](data)


def test_every_folder_belongs_to_a_target() -> None:
    assert {folder.name for folder in corpus.FOLDER.iterdir()} == set(TARGETS)
