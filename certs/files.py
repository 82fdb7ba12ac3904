"""Key files: written atomically, readable only by their owner, and refused if others can read them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from certs.file_modes import KeyFileError, Mount, check_private, is_private, mount_of, no_modes
from tunnel_core.text_files import NotPlainText, without_mark

__all__ = [
    "KeyFileError",
    "hold_folder",
    "in_memory",
    "make_private_folder",
    "path_for_openssl",
    "place_new",
    "read_private",
    "read_public",
    "real_place",
    "remove_interrupted",
    "remove_staged",
    "sync_folder",
    "write_private",
    "write_public",
]

PRIVATE = 0o600
PUBLIC = 0o644
_MAX_BYTES = 256 * 1024
_STAGED_CHARS = 16
_MAX_LINKS = 40
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_MODES = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of file systems without locks of folders. NFS locks only files open for writing (EBADF)."""
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


def read_private(path: Path) -> bytes:
    """Return the content of a key file. Raises ``KeyFileError`` if others may read it, or ``OSError``."""
    with path.open("rb") as file:
        check_private(path, os.fstat(file.fileno()))  # The open file, because the path may change meanwhile.
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise KeyFileError(f"{path} is larger than {_MAX_BYTES // 1024} KiB; is it the right file?")
    try:
        return without_mark(data)
    except NotPlainText as error:
        raise KeyFileError(f"{path} {error}") from None


def read_public(path: Path) -> bytes:
    """Return the content of a PEM file without a secret. Raises ``OSError``, or ``NotPlainText``."""
    return without_mark(path.read_bytes())


@contextlib.contextmanager
def path_for_openssl(path: Path) -> Iterator[Path]:
    """Yield a path from which OpenSSL can read the content of ``path``, valid inside the block.

    OpenSSL loads keys only from files, and finds no PEM block after a byte order mark. Such a file is copied
    into memory without the mark. Raises ``OSError``, or ``NotPlainText``.
    """
    data = path.read_bytes()
    plain = without_mark(data)
    if plain == data or not hasattr(os, "memfd_create"):
        yield path
        return
    with in_memory(plain) as copy:
        yield copy


@contextlib.contextmanager
def in_memory(data: bytes) -> Iterator[Path]:
    """Yield a path from which this process can read ``data``, valid inside the block. Linux only."""
    with os.fdopen(os.memfd_create("pem"), "wb") as copy:
        copy.write(data)
        copy.flush()
        yield Path(f"/proc/self/fd/{copy.fileno()}")


def real_place(path: Path) -> Path:
    """Return the path for new content of ``path``: the target of a symbolic link, or ``path`` itself.

    A link is followed if it belongs to root or to this user. Another user's link is replaced like a file,
    because root could write anywhere through it. Raises ``OSError``.
    """
    for _ in range(_MAX_LINKS):
        if not path.is_symlink() or path.lstat().st_uid not in (0, os.geteuid()):
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write ``path`` atomically with mode 0600, and sync it to the disk.

    With ``replace=False``, keep an existing file and raise ``FileExistsError``. Raises ``OSError``.
    """
    _write(path, data, PRIVATE, replace)


def write_public(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write ``path`` like ``write_private``, with mode 0644, for certificates and configuration."""
    _write(path, data, PUBLIC, replace)


def make_private_folder(path: Path) -> None:
    """Create ``path`` and its parents. A new ``path`` has mode 0700."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        sync_folder(path.parent)


def remove_interrupted(path: Path) -> None:
    """Remove ``path``, if it exists, and unfinished copies that a killed process left.

    Raises ``OSError`` if ``path`` is not a file, for example a device.
    """
    _require_plain(path)
    path.unlink(missing_ok=True)
    remove_staged(path)


def remove_staged(path: Path) -> None:
    """Remove unfinished copies of ``path`` that killed processes left.

    The caller must hold a lock, because other processes may be writing.
    """
    for staged in path.parent.glob(f".{glob.escape(path.name)}.{'?' * _STAGED_CHARS}"):
        staged.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_folder(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a folder for the block. Without a free lock, wait and block the thread, or fail without ``wait``.

    The lock is flock(2) of the folder, because files in it are replaced. It has no effect on network file
    systems that do not lock folders. Raises ``BlockingIOError`` if another process has the lock and ``wait``
    is false, and ``OSError`` if the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Sync new, moved and removed names of a folder to the disk, which fsync of a file does not (fsync(2)).

    Network file systems that cannot sync folders order names by themselves, so their error is ignored.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def place_new(staged: Path, path: Path) -> None:
    """Give the file ``staged`` the additional name ``path``. Raises ``FileExistsError`` if ``path`` exists.

    Without hard links (FAT, CIFS, 9p) an empty file reserves the name first, and ``staged`` replaces it. A
    process that is killed in between leaves the empty file, never a part of the content.
    """
    try:
        path.hardlink_to(staged)  # Unlike rename, this fails if the name exists.
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE))
        try:
            staged.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _write(path: Path, data: bytes, mode: int, replace: bool) -> None:
    if replace:
        _require_plain(path)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(_STAGED_CHARS // 2)}")
    try:
        _write_synced(staged, data, mode)
        if replace:
            staged.replace(path)
        else:
            place_new(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)


def _require_plain(path: Path) -> None:
    """Raise ``OSError`` for a device or a pipe, because root could replace /dev/null of the machine."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        _set_mode(path, file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _set_mode(path: Path, descriptor: int, mode: int) -> None:
    """Set the mode in spite of the umask. Raises ``OSError`` if others could still read a key."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise
    if mode == PRIVATE and not is_private(os.fstat(descriptor)):  # CIFS ignores chmod without an error.
        cure = no_modes(mount_of(path) or Mount(path.parent, "the file system"))
        raise OSError(errno.EOPNOTSUPP, f"a key there would be readable by others; {cure}", str(path))
