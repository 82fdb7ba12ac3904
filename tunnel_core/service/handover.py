"""Change the owner of files from root to a service's user, but never of another user's files.

The folder may already belong to the service's user, who may put links into it while root works there. So no
link is followed. Each file is opened before it is checked, and the owner changes through that open
descriptor.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunnel_core.service.machine import Account, MachineError

_MAX_ENTRIES = 10_000


def hand_over_tree(folder: Path, account: Account) -> int:
    """Make ``account`` the owner of ``folder`` and all entries in it. Return the number of changed entries.

    Raises ``MachineError``, before any change, if an entry is a link, has a second name (hard link), or
    belongs to a third user.
    """
    changed = 0
    for is_dry in (True, False):
        for folder_descriptor, name, path in _walk(folder):
            with suppress(FileNotFoundError):  # a running service may remove its files meanwhile
                changed += _change_owner(folder_descriptor, name, path, account, is_dry=is_dry)
    return changed


def hand_over_file(file: Path, account: Account) -> bool:
    """Make ``account`` the owner of one file. Return whether the owner changed. Raises ``MachineError``."""
    with _opened_folder(file.parent) as folder_descriptor, _as_machine_error(file):
        return bool(_change_owner(folder_descriptor, file.name, file, account, is_dry=False))


def let_read(file: Path, account: Account) -> None:
    """Let the group of ``account`` read a file that stays root's. Raises ``MachineError``."""
    with (
        _opened_folder(file.parent) as folder_descriptor,
        _as_machine_error(file),
        _opened(folder_descriptor, file.name) as (descriptor, status),
    ):
        _check(status, file, account)
        os.chown(_descriptor_path(descriptor), -1, account.gid)
        Path(_descriptor_path(descriptor)).chmod(stat.S_IMODE(status.st_mode) | stat.S_IRGRP)


def _walk(folder: Path) -> Iterator[tuple[int, str, Path]]:
    """Yield each entry as its folder's descriptor, its name in the folder, and its path for messages."""
    with _opened_folder(folder.parent) as folder_descriptor:
        yield folder_descriptor, folder.name, folder
    entries = 0
    for root, folders, files, folder_descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            entries += 1
            if entries > _MAX_ENTRIES:
                raise MachineError(f"{folder} has more than {_MAX_ENTRIES} entries; is it the right folder?")
            yield folder_descriptor, name, Path(root) / name


def _change_owner(folder_descriptor: int, name: str, path: Path, account: Account, *, is_dry: bool) -> int:
    with _opened(folder_descriptor, name) as (descriptor, status):
        if (status.st_uid, status.st_gid) == (account.uid, account.gid):
            return 0
        _check(status, path, account)
        if is_dry:
            return 0
        os.chown(_descriptor_path(descriptor), account.uid, account.gid)
    return 1


def _check(status: os.stat_result, path: Path, account: Account) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise MachineError(f"{path} is a symbolic link; put the file itself there, and run this again")
    if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
        raise MachineError(f"{path} has a second name elsewhere (a hard link); make it a copy")
    if status.st_uid not in (0, account.uid):
        raise MachineError(
            f"{path} belongs to user {status.st_uid}; chown it to root or {account.name} first"
        )


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    with _as_machine_error(folder):
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened(folder_descriptor: int, name: str) -> Iterator[tuple[int, os.stat_result]]:
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder_descriptor)
    try:
        yield descriptor, os.fstat(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_machine_error(path: Path) -> Iterator[None]:
    """Raise ``MachineError`` for an ``OSError`` of the block."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{path} cannot be given to the service: {error.strerror}") from None


def _descriptor_path(descriptor: int) -> str:
    """Return a path to the open file, because ``fchown`` refuses a descriptor that O_PATH opened."""
    return f"/proc/self/fd/{descriptor}"
