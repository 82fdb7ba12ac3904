"""Tune malloc and the garbage collector for bulk transfers, once a program has loaded its modules.

1. malloc. A packet has up to 1 MiB. By default glibc maps such a block anew, or trims the heap when the block
   is freed. So every MiB moved costs 150 to 260 page faults, which is half of the system time of a transfer.
   With these thresholds the next packet reuses the pages of the last one. For that, the process keeps up to
   16 MiB; ``memory_return.py`` returns them.
2. One arena. malloc gives threads arenas of their own, and ``malloc_trim`` returns no page at the end of
   those. gRPC's threads at the agent filled five of them: 40 MiB of 103 stayed after uploads.
3. Garbage collector. The objects that exist now are frozen, so the collector does not visit modules and
   classes again. Streams, requests and sessions leave nothing to the collector, so its work is to find that
   there is no garbage. At a threshold of 1,000 new objects this took 24 us of each new connection at the
   server, and 12 at the agent; at 10,000 it takes less than 1. A collection of new objects then takes 2 to
   4 ms, during which all streams wait. A full collection is as rare as it was.
"""

from __future__ import annotations

import ctypes
import gc

from tunnel_core.limits import MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_KEPT_BYTES = 16 * MIB
_MAPPED_BYTES = 4 * MIB
"""Size from which a block gets a mapping of its own. Larger than the largest message."""
_YOUNG_OBJECTS, _YOUNG_ROUNDS, _OLD_ROUNDS = 10_000, 5, 40


def tune_memory() -> None:
    """Tune the garbage collector, and malloc if it is glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_ARENA_MAX, 1)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_ROUNDS, _OLD_ROUNDS)
