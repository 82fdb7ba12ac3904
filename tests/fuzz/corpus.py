"""The kept inputs: one file for each, in a folder for each target, few and small.

``python -m tests.fuzz TARGET --keep`` keeps new inputs. Every everyday run of the tests reads all kept
inputs, so an input that once found a fault tests the cure from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
MOST, MOST_BYTES = 48, 2048
"""Inputs that are kept for a target, and the largest input that is kept automatically."""


def files_of(target: str) -> list[Path]:
    return sorted((FOLDER / target).iterdir())


def inputs_of(target: str) -> list[bytes]:
    return [file.read_bytes() for file in files_of(target)]


def keep(target: str, found: Iterable[bytes]) -> int:
    """Add the smallest new inputs, as far as there is room. Returns their number."""
    folder = FOLDER / target
    folder.mkdir(parents=True, exist_ok=True)
    known, kept = {file.name for file in folder.iterdir()}, 0
    for data in sorted(found, key=len):
        name = hashlib.sha256(data).hexdigest()[:16]
        if len(known) < MOST and len(data) <= MOST_BYTES and name not in known:
            (folder / name).write_bytes(data)
            known.add(name)
            kept += 1
    return kept
