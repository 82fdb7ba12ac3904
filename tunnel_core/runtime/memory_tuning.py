"""Tune malloc and the garbage collector for bulk transfers, once a program has loaded its modules.

1. malloc. A packet has up to 1 MiB. By default glibc maps such a block anew, or trims the heap when the block
   is freed. So every MiB moved costs 150 to 260 page faults, which is half of the system time of a transfer.
   With these thresholds the next packet reuses the pages of the last one. For that, the process keeps up to
   16 MiB for each of malloc's arenas.
2. Garbage collector. The objects that exist now are frozen, so the collector does not visit modules and
   classes again. Its default threshold of 700 new objects is raised. A collection stays short, because all
   streams wait for it.
"""

from __future__ import annotations

import ctypes
import gc

from tunnel_core.limits import MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES = 16 * MIB
_MAPPED_BYTES = 4 * MIB
"""Size from which a block gets a mapping of its own. Larger than the largest message."""
_YOUNG_OBJECTS, _YOUNG_ROUNDS, _OLD_ROUNDS = 1_000, 5, 400


def tune_memory() -> None:
    """Tune the garbage collector, and malloc if it is glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, _OLD_ROUNDS)
