"""The inputs that are kept: one file for each, in a folder for each target, few and small.

What is new to a fuzzer is kept by hand: ``python -m tests.fuzz TARGET --keep``. Every everyday run of the
tests reads them all, so an input that once found a fault stays a test of its cure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
MOST, MOST_BYTES = 48, 2048
"""Kept for a target, and how large one may be unless it is kept by hand."""


def files_of(target: str) -> list[Path]:
    return sorted((FOLDER / target).iterdir())


def inputs_of(target: str) -> list[bytes]:
    return [file.read_bytes() for file in files_of(target)]


def keep(target: str, found: Iterable[bytes]) -> int:
    """Adds the smallest that are new, as far as there is room; returns how many."""
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
