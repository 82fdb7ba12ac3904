"""How a process that moves bulk keeps its memory. Called once, when a program has loaded what it needs.

1. A packet is up to 1 MiB. glibc by default maps such a block anew or trims the heap when it is freed,
   so every MiB moved costs 150 to 260 page faults: half of the system time of a transfer. With these
   thresholds the next packet finds the pages of the last one; up to 16 MiB for each of malloc's
   arenas stay with the process for that.
2. What exists now stays: the collector need not look at modules and classes again, nor run each time
   700 objects more than before are alive. Little is looked at at a time: everybody waits meanwhile.
"""

from __future__ import annotations

import ctypes
import gc

from tunnel_core.limits import MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES = 16 * MIB
_MAPPED_BYTES = 4 * MIB
"""Blocks from here on are mapped one by one: above the largest message."""
_YOUNG_OBJECTS, _YOUNG_ROUNDS, _OLD_ROUNDS = 1_000, 5, 400


def tune_memory() -> None:
    """Tunes malloc, where it is glibc's, and the collector of this process."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, _OLD_ROUNDS)
