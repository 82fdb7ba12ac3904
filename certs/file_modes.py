"""Accepted modes of key files. One rule for every program and every file with a key.

1. Access for the owner only (mode 0600) is always accepted.
2. A group of this process may have access if the file belongs to root or to this user. Kubernetes mounts a
   Secret as root's, for the pod's ``fsGroup``, with mode 0440 or 0640, and does not allow chmod. On the pod's
   own volumes it adds 0660 to each file at each start.
3. FAT, CIFS and 9p have no modes, so the mount sets one mode for all files. The remedy is a mount
   option. If the mount cannot be changed, a variable switches the check off.
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
    """A file with a key is not usable. The text is a sentence for the user, with the remedy."""


def is_private(status: os.stat_result) -> bool:
    """Whether only accepted users and groups can read a file with this status."""
    if os.environ.get(MODES_VARIABLE) == IGNORE or not status.st_mode & 0o077:
        return True
    if status.st_mode & 0o007 or status.st_uid not in (0, os.geteuid()):
        return False
    return status.st_gid in (os.getegid(), *os.getgroups())


def check_private(path: Path, status: os.stat_result) -> None:
    """Raise ``KeyFileError`` if others may read the key file ``path`` with the given status."""
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
                f"this process is not in its group {group}: add the process to it"
                " (Kubernetes: securityContext.fsGroup)"
            )
        return f"it belongs to user id {owner}; as that user, run: chmod 600 {shlex.quote(str(path))}"
    return f"run: chmod 600 {shlex.quote(str(path))}"


class Mount(NamedTuple):
    """Mount point of a file system, and its kind, for example ``vfat``."""

    place: Path
    kind: str


def no_modes(mount: Mount) -> str:
    """Return the remedy for key files on a file system without modes."""
    option = _MOUNT_OPTIONS.get(mount.kind, "an option that makes files private")
    return (
        f"{mount.kind} at {mount.place} has no file modes: mount it with {option}, or, if only you"
        f" use this machine, set {MODES_VARIABLE}={IGNORE}"
    )


def mount_of(path: Path) -> Mount | None:
    """Return the mount of ``path``, or None on systems other than Linux."""
    real = Path(os.path.realpath(path))
    found = None
    for place, kind in _mounts():
        if real.is_relative_to(place) and (found is None or len(str(place)) >= len(str(found.place))):
            found = Mount(place, kind)
    return found


def is_mount_point(path: Path) -> bool:
    """Whether ``path`` itself is a mount point, like single files that Docker and Kubernetes mount."""
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
    """Replace the octal escapes of blanks and backslashes."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), place)
