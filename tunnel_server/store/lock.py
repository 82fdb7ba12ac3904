"""Lock of a data folder: only one process may write, the running server or a command.

The lock is flock(2), so that no lock outlives its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from certs.authority_folder import chown_like
from certs.files import PRIVATE
from tunnel_server.store.database import failures

PATIENCE_SECONDS = 3.0
"""Time for which a command, or a server that starts, waits for a store in use. Commands hold the lock for a
moment."""
RETRY_SECONDS = 0.05
_NAME = "store.lock"


class StoreHeld(Exception):  # noqa: N818 - named by what happened
    """Another process holds the lock. ``holder`` is its process id, or 0 if the file does not have it yet."""

    def __init__(self, data_dir: Path, holder: int) -> None:
        super().__init__(data_dir, holder)
        self.data_dir = data_dir
        self.holder = holder

    def __str__(self) -> str:
        holder = f"process {self.holder}" if self.holder else "another process"
        return f"the store in {self.data_dir} is in use by {holder}: a running server, or another command"


@contextlib.contextmanager
def hold_store(data_dir: Path) -> Iterator[None]:
    """Hold the lock inside the block. Raises ``StoreHeld``, or ``StoreError`` if the file cannot be made."""
    path = data_dir / _NAME
    with failures(path):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
    with os.fdopen(descriptor, "r+b") as file:
        chown_like(data_dir, path)
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreHeld(data_dir, _holder(file.read(32))) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield
        file.truncate(0)


@contextlib.asynccontextmanager
async def wait_hold_store(data_dir: Path) -> AsyncIterator[None]:
    """Hold the lock inside the block; wait up to 3 s for a command that holds it.

    Raises ``StoreHeld`` or ``StoreError``.
    """
    deadline = trio.current_time() + PATIENCE_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold_store(data_dir))
                break
            except StoreHeld:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(RETRY_SECONDS)
        yield


def _holder(text: bytes) -> int:
    return int(text) if text.strip().isdigit() else 0
