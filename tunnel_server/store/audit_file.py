"""The audit as a file of JSON lines beside the store, for whatever collects logs.

It is opened anew for each write, so it may be moved away at any time. Above its size it is moved to
``.1`` by itself, so that it is bounded where nobody collects it; the store has the same lines.
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
    """Used by the store's one writing thread. ``path`` None: there is no file."""

    def __init__(self, path: Path | None, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Puts the lines on the disk. Blocks. Raises ``OSError``; then none, or some, may be there."""
        if self._path is None or not lines:
            return
        data = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
        # A named pipe without a reader must be an error: the whole store would wait for it to be opened.
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
