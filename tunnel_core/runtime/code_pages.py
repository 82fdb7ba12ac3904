"""Unmap the code of libraries that a program needed only for its start or for the last work.

The kernel maps 64 KiB of a library around each page that a program touches. So at the start nearly all of
gRPC, OpenSSL and Python becomes resident: 25 MiB of an agent, of which an attached and idle agent uses 8. An
unmapped page stays in the kernel's page cache, where programs share it. The next use maps it again, in less
than 1 us for each 64 KiB. Where memory is short the kernel can drop such pages before it has to look for
others.

Only mappings of files that no page was ever written in are unmapped: code and constants. Data and relocated
tables are private copies, which would be lost. While a thread loads a library, the place of its data is for
a moment a clean mapping of the file. So only what was the same at the look before is unmapped.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

_SMAPS = Path("/proc/self/smaps")
_MADV_DONTNEED = 4
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ +(/.*)")
_READ_ONLY = ("r-xp", "r--p")
_COPIED = ("Anonymous:", "Swap:")
"""Lines of smaps with the pages of a mapping that are no longer those of its file."""

Range: TypeAlias = tuple[int, int]


def find_unmap(library: object | None = None, smaps: Path = _SMAPS) -> Callable[[], None] | None:
    """Return a function that unmaps unwritten pages of files; None where the system cannot tell which.

    The first look is made now. Each call looks again, and unmaps what is the same as at the look before.
    """
    advise = getattr(ctypes.CDLL(None) if library is None else library, "madvise", None)
    if advise is None or os.uname().sysname != "Linux" or not smaps.exists():
        return None
    advise.argtypes, advise.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    seen = _look(smaps)

    def unmap() -> None:
        nonlocal seen
        before, seen = seen, _look(smaps)
        for start, end in before & seen:
            advise(start, end - start, _MADV_DONTNEED)  # an error, as of a locked mapping, changes nothing

    return unmap


def _look(smaps: Path) -> frozenset[Range]:
    try:
        return frozenset(unwritten(smaps.read_text(errors="replace").splitlines()))
    except OSError:
        return frozenset()  # a sandbox that forbids the look; the pages only stay mapped


def unwritten(lines: Iterable[str]) -> Iterator[Range]:
    """Yield start and end of each read-only private mapping of a file without a written page.

    ``lines`` are those of ``/proc/PID/smaps``, see proc(5). A mapping counts as written if a line about
    written pages is missing.
    """
    mapping: Range | None = None
    unwritten_lines = 0
    for line in lines:
        if not line[:1].isupper():
            head = _HEAD.fullmatch(line)
            mapping = (int(head[1], 16), int(head[2], 16)) if head and head[3] in _READ_ONLY else None
            unwritten_lines = 0
        elif line.startswith(_COPIED) and line.split()[1] == "0":
            unwritten_lines += 1
            if mapping is not None and unwritten_lines == len(_COPIED):
                yield mapping
