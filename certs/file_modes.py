"""Decide who may read a key file. One rule for every program and every file with a key.

1. Access for the owner alone (mode 0600) is always accepted.
2. A group of this process's own may have access if the file belongs to root or to this user. Kubernetes
   gives a mounted Secret to root and to the pod's ``fsGroup`` with mode 0440 or 0640, and chmod is impossible
   there. On the pod's own volumes it adds 0660 to each file at each start.
3. FAT, CIFS and 9p have no modes of their own: the mount sets one mode for all files. The cure is a mount
   option. Where the mount cannot be changed, a variable switches the check off.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path
from typing import NamedTuple

MODES_VARIABLE = "QANAT_KEY_FILE_MODES"
IGNORE = "ignore"
_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_OPTIONS = {
    **dict.fromkeys(("vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk"), "umask=0077"),
    **dict.fromkeys(("cifs", "smb3"), "file_mode=0600,dir_mode=0700"),
    **dict.fromkeys(("9p", "virtiofs", "drvfs", "vboxsf"), "an option that makes files private"),
}
_OCTAL = re.compile(r"\\([0-7]{3})")


class KeyFileError(Exception):
    """A file with a key cannot be used. The text is a sentence for the user, with the command that helps."""


def is_private(status: os.stat_result) -> bool:
    """Whether only users and groups that may know the key can read a file of this status."""
    if os.environ.get(MODES_VARIABLE) == IGNORE or not status.st_mode & 0o077:
        return True
    if status.st_mode & 0o007 or status.st_uid not in (0, os.geteuid()):
        return False
    return status.st_gid in (os.getegid(), *os.getgroups())


def check_private(path: Path, status: os.stat_result) -> None:
    """Raises ``KeyFileError`` if others may read the key file ``path``, whose status is given."""
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path} is not a regular file")
    if not is_private(status):
        raise KeyFileError(f"{path} holds a private key and can be read by others; {_cure(path, status)}")


def _cure(path: Path, status: os.stat_result) -> str:
    mount = mount_of(path)
    if mount is not None and mount.kind in _MOUNT_OPTIONS:
        return no_modes(mount)
    if os.geteuid() not in (0, status.st_uid):
        mode, owner, group = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        if not mode & 0o007 and owner == 0:
            return (
                f"its group {group} is none of this process's: add the process to it"
                " (Kubernetes: securityContext.fsGroup)"
            )
        return f"it belongs to user id {owner}, who must run: chmod 600 {shlex.quote(str(path))}"
    return f"run: chmod 600 {shlex.quote(str(path))}"


class Mount(NamedTuple):
    """Where a file system is mounted, and its kind, for example ``vfat``."""

    place: Path
    kind: str


def no_modes(mount: Mount) -> str:
    """The cure for key files on a file system without modes."""
    option = _MOUNT_OPTIONS.get(mount.kind, "an option that makes files private")
    return (
        f"{mount.kind} at {mount.place} has no modes of its own: mount it with {option}, or, if you"
        f" alone use this machine, set {MODES_VARIABLE}={IGNORE}"
    )


def mount_of(path: Path) -> Mount | None:
    """The mount that ``path`` lies on; None where the system does not tell (other than Linux)."""
    real = Path(os.path.realpath(path))
    found = None
    for place, kind in _mounts():
        if real.is_relative_to(place) and (found is None or len(str(place)) >= len(str(found.place))):
            found = Mount(place, kind)
    return found


def is_mount_point(path: Path) -> bool:
    """Whether ``path`` itself is mounted, as Docker and Kubernetes do with single files."""
    mount = mount_of(path)
    return mount is not None and mount.place == Path(os.path.realpath(path))


def _mounts() -> list[Mount]:
    try:
        lines = os.fsdecode(_MOUNTS.read_bytes()).splitlines()
    except OSError:
        return []
    # proc(5): ID parent device root PLACE options [tags] - KIND source options
    halves = [line.partition(" - ") for line in lines]
    return [
        Mount(Path(_plain(left.split(" ")[4])), right.split(" ")[0])
        for left, separator, right in halves
        if separator
    ]


def _plain(place: str) -> str:
    """Without the octal escapes of blanks and backslashes."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), place)
