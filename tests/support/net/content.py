"""Bytes that both ends of a transfer know. All blocks differ, so a loss, a repeat and a swap all show."""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
from collections.abc import Iterator

COUNT = struct.Struct("!Q")
"""The request for a number of bytes, as a ``source`` reads it."""

DIGEST_BYTES = 64
_BLOCK_BYTES = 64 << 10
_FILLING = random.Random(4).randbytes(_BLOCK_BYTES - COUNT.size)  # noqa: S311 - the same at both ends


def blocks(total: int) -> Iterator[bytes]:
    """Yield the first ``total`` bytes of the content."""
    for number in itertools.count():
        left = total - number * _BLOCK_BYTES
        if left <= 0:
            return
        yield (COUNT.pack(number) + _FILLING)[:left]


def digest_of(total: int) -> str:
    """Return the SHA-256 of the first ``total`` bytes."""
    digest = hashlib.sha256()
    for block in blocks(total):
        digest.update(block)
    return digest.hexdigest()
