"""The audit as a file of JSON lines, for log collectors.

The file is opened for each write, so it can be moved away at any time. A file above its limit is moved to
``.1``, which bounds a file that no collector reads. The store has the same lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certs.authority_folder import chown_like
from certs.files import PRIVATE

MAX_BYTES = 16 * 1024 * 1024


class AuditFile:
    """The audit file, for the store's writing thread alone. ``path`` None: no file is written."""

    def __init__(self, path: Path | None, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write the lines to the disk. Blocks. Raises ``OSError``; some lines may have been written then."""
        if self._path is None or not lines:
            return
        data = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
        # O_NONBLOCK, because opening a named pipe without a reader would block the whole store.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(self._path, flags, PRIVATE), "ab", buffering=0) as file:
            chown_like(self._path.parent, self._path)
            if file.tell() and file.tell() + len(data) > self._max_bytes:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self.append(lines)
                return
            _write_all(file.fileno(), data)
            os.fsync(file.fileno())


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
