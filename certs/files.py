"""Key files: written atomically, readable by their owner alone, refused if anybody else can read them."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from tunnel_core.text_files import NotPlainText, without_mark

PRIVATE = 0o600
PUBLIC = 0o644
_MAX_BYTES = 256 * 1024
_STAGED_CHARS = 16


class KeyFileError(Exception):
    """A file with a key cannot be used. The text is a sentence for the user, with the command that helps."""


def read_private(path: Path) -> bytes:
    """The content of a key file. Raises ``KeyFileError`` if others may read it, or ``OSError``."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())  # of what was opened: a path may be swapped between two looks
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path} is not a regular file")
        if status.st_mode & 0o077:
            cure = f"chmod 600 {shlex.quote(str(path))}"
            raise KeyFileError(f"{path} holds a private key and can be read by others; run: {cure}")
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise KeyFileError(f"{path} is larger than {_MAX_BYTES // 1024} KiB; is it the right file?")
    try:
        return without_mark(data)
    except NotPlainText as error:
        raise KeyFileError(f"{path} {error}") from None


def read_public(path: Path) -> bytes:
    """The content of a PEM file without a secret. Raises ``OSError``, or ``NotPlainText``."""
    return without_mark(path.read_bytes())


@contextlib.contextmanager
def path_for_openssl(path: Path) -> Iterator[Path]:
    """A path under which OpenSSL reads ``path``; for the time of the block.

    OpenSSL takes keys from files only, and finds no PEM block behind a byte order mark. Such a file is
    copied into memory without the mark. Raises ``OSError``, or ``NotPlainText``.
    """
    data = path.read_bytes()
    plain = without_mark(data)
    if plain == data or not hasattr(os, "memfd_create"):
        yield path
        return
    with os.fdopen(os.memfd_create(path.name), "wb") as copy:
        copy.write(plain)
        copy.flush()
        yield Path(f"/proc/self/fd/{copy.fileno()}")


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Writes ``path`` with mode 0600, whole or not at all, and on the disk when it returns.

    With ``replace=False`` an existing file is kept and ``FileExistsError`` raised.
    """
    _write(path, data, PRIVATE, replace)


def write_public(path: Path, data: bytes, *, replace: bool = True) -> None:
    """As ``write_private``, with mode 0644: certificates and configuration."""
    _write(path, data, PUBLIC, replace)


def make_private_folder(path: Path) -> None:
    """Makes ``path`` and its parents; ``path`` itself is entered by its owner alone if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        sync_folder(path.parent)


def remove_interrupted(path: Path) -> None:
    """Removes ``path``, if it is there, and what a killed process left of writing it."""
    path.unlink(missing_ok=True)
    remove_staged(path)


def remove_staged(path: Path) -> None:
    """Removes what killed processes left of writing ``path``. For who holds a lock: others may be writing."""
    for staged in path.parent.glob(f".{glob.escape(path.name)}.{'?' * _STAGED_CHARS}"):
        staged.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Puts new, moved and removed names on the disk, which fsync of a file does not (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes, mode: int, replace: bool) -> None:
    staged = path.with_name(f".{path.name}.{secrets.token_hex(_STAGED_CHARS // 2)}")
    try:
        _write_synced(staged, data, mode)
        if replace:
            staged.replace(path)
        else:
            path.hardlink_to(staged)  # unlike rename, fails if the name is taken
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask says
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
