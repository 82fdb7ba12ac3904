"""Give files that root made to the user of a service, without ever giving away a file of another's.

The folder may already belong to that user, who may put links into it while root works there. So no link
is followed, each file is opened before it is looked at, and only that open file changes its owner.
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
    """Give ``folder`` and all in it to ``account``. Returns how many entries changed their owner.

    Nothing is changed if any entry is a link, has a second name elsewhere, or belongs to a third user.
    Raises ``MachineError``.
    """
    changed = 0
    for is_dry in (True, False):
        for place, name, shown in _walk(folder):
            with suppress(FileNotFoundError):  # a running program removes files of its own
                changed += _give(place, name, shown, account, is_dry=is_dry)
    return changed


def hand_over_file(file: Path, account: Account) -> bool:
    """Give one regular file to ``account``. Returns whether its owner changed. Raises ``MachineError``."""
    with _opened_folder(file.parent) as place, _said(file):
        return bool(_give(place, file.name, file, account, is_dry=False))


def let_read(file: Path, account: Account) -> None:
    """Let the group of ``account`` read a file that stays root's. Raises ``MachineError``."""
    with _opened_folder(file.parent) as place, _said(file), _opened(place, file.name) as (descriptor, status):
        _check(status, file, account)
        os.chown(_itself(descriptor), -1, account.gid)
        Path(_itself(descriptor)).chmod(stat.S_IMODE(status.st_mode) | stat.S_IRGRP)


def _walk(folder: Path) -> Iterator[tuple[int, str, Path]]:
    """Each entry as the descriptor of its folder, its name there, and its path to show."""
    with _opened_folder(folder.parent) as place:
        yield place, folder.name, folder
    entries = 0
    for root, folders, files, place in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            entries += 1
            if entries > _MAX_ENTRIES:
                raise MachineError(f"{folder} has more than {_MAX_ENTRIES} entries; is it the right folder?")
            yield place, name, Path(root) / name


def _give(place: int, name: str, shown: Path, account: Account, *, is_dry: bool) -> int:
    with _opened(place, name) as (descriptor, status):
        if (status.st_uid, status.st_gid) == (account.uid, account.gid):
            return 0
        _check(status, shown, account)
        if is_dry:
            return 0
        os.chown(_itself(descriptor), account.uid, account.gid)
    return 1


def _check(status: os.stat_result, shown: Path, account: Account) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise MachineError(f"{shown} is a symbolic link; put the file itself there, and run this again")
    if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
        raise MachineError(f"{shown} has a second name elsewhere (a hard link); make it a copy")
    if status.st_uid not in (0, account.uid):
        raise MachineError(
            f"{shown} belongs to user {status.st_uid}; chown it to root or {account.name} first"
        )


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    with _said(folder):
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened(place: int, name: str) -> Iterator[tuple[int, os.stat_result]]:
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=place)
    try:
        yield descriptor, os.fstat(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Raise ``MachineError`` for an ``OSError`` of the block."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{path} cannot be given to the service: {error.strerror}") from None


def _itself(descriptor: int) -> str:
    """A path to exactly the open file: ``fchown`` refuses a descriptor that was opened with O_PATH."""
    return f"/proc/self/fd/{descriptor}"
