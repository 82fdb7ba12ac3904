"""Unmap the code of libraries that a program needed only for its start or for the last work.

The kernel maps 64 KiB of a library around each page that a program touches. So at the start nearly all of
gRPC, OpenSSL and Python becomes resident: 25 MiB of an agent, of which an attached and idle agent uses 8. An
unmapped page stays in the kernel's page cache, where programs share it. The next use maps it again, in less
than 1 us for each 64 KiB. Where memory is short the kernel can drop such pages before it has to look for
others.

Only executable mappings of files in which no page was written are unmapped. Written pages are private copies,
which would be lost: data, tables that the loader relocated, code with a breakpoint.

1. Constants stay mapped, because the loader writes into mappings beside them, and an emulator (QEMU) does not
   report exactly into which: an agent for another processor ended by that.
2. A report without any written page of a file is not believed, because the loader always writes some. Nor is
   one with addresses that no pointer of this program can have, which are those of an emulator.
3. While a thread loads a library, the kernel shows the place of its data as part of a clean mapping for a
   moment. So only what was the same at the look before is unmapped.
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
_CODE = "r-xp"
_ADDRESS_BITS = 8 * ctypes.sizeof(ctypes.c_void_p)
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
    lines = _lines(smaps)
    if not is_believable(lines):
        return None
    seen = frozenset(unwritten_code(lines))

    def unmap() -> None:
        nonlocal seen
        before, seen = seen, frozenset(unwritten_code(_lines(smaps)))
        for start, end in before & seen:
            advise(start, end - start, _MADV_DONTNEED)  # an error, as of a locked mapping, changes nothing

    return unmap


def _lines(smaps: Path) -> list[str]:
    try:
        return smaps.read_text(errors="replace").splitlines()
    except OSError:
        return []  # a sandbox that forbids the look; the pages only stay mapped


def is_believable(lines: Iterable[str], address_bits: int = _ADDRESS_BITS) -> bool:
    """Whether the report is of this process, and shows a written page of a file, as each real kernel does."""
    is_file, has_written = False, False
    for line in lines:
        if not line[:1].isupper():
            head = _HEAD.fullmatch(line)
            if head is not None and int(head[2], 16) >> address_bits:
                return False
            is_file = head is not None
        elif is_file and line.startswith("Anonymous:") and line.split()[1] != "0":
            has_written = True
    return has_written


def unwritten_code(lines: Iterable[str]) -> Iterator[Range]:
    """Yield start and end of each executable private mapping of a file without a written page.

    ``lines`` are those of ``/proc/PID/smaps``, see proc(5). A mapping counts as written if a line about
    written pages is missing.
    """
    mapping: Range | None = None
    unwritten_lines = 0
    for line in lines:
        if not line[:1].isupper():
            head = _HEAD.fullmatch(line)
            mapping = (int(head[1], 16), int(head[2], 16)) if head and head[3] == _CODE else None
            unwritten_lines = 0
        elif line.startswith(_COPIED) and line.split()[1] == "0":
            unwritten_lines += 1
            if mapping is not None and unwritten_lines == len(_COPIED):
                yield mapping
