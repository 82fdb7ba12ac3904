"""Work of root in another user's folder, with the rights of that user.

1. As root, this process would follow symbolic links that the user put into the folder, and could write
   anywhere. With the effective user of the owner, a link leads only to places where that user may write.
2. The owner is the first user other than root who owns a part of the path, from ``/`` down. That user
   controls all further parts. Links of root are followed.
3. In a user namespace, for example of a rootless container, files of outside users seem to belong to a user
   that does not exist inside. Such parts are ignored, because no process in the namespace can change them.
4. The effective user applies to the whole process, so only commands use this module, and never a server.
   ``as_owner`` raises if it would change the user while another thread runs. It cannot skip the change,
   because root would then follow the links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_MAX_LINKS = 40
_ROOT = 0
_MAPPED = Path("/proc/self/uid_map")
_IDLE_WORKER = "Trio thread "
"""Name that trio gives to an idle thread. A busy thread has the name of its work."""


class Owner(NamedTuple):
    """A user, and the group of the user's file."""

    uid: int
    gid: int


class _User(NamedTuple):
    uid: int
    gid: int
    groups: Sequence[int]


_ROOT_OWNER = Owner(_ROOT, _ROOT)


@contextlib.contextmanager
def as_owner(path: Path) -> Iterator[None]:
    """Run the block with the rights of the owner of ``path``, if this process runs as root.

    Blocks may be nested. ``path`` need not exist. Raises ``OSError``, and ``RuntimeError`` if the user would
    change while another thread runs.
    """
    if _ROOT not in os.getresuid():
        yield
        return
    before, owner = _User(os.getresuid()[1], os.getegid(), os.getgroups()), _ROOT_OWNER
    try:
        os.seteuid(_ROOT)  # A nested block needs root's rights to read every part of the path.
        owner = owner_of(path)
        if owner.uid != before.uid:
            _require_no_other_thread()
        if owner.uid != _ROOT:
            _become(_user(owner))
        elif before.uid != _ROOT:
            _become(_User(_ROOT, _ROOT, [_ROOT]))
        yield
    except PermissionError as error:
        if owner.uid != _ROOT and error.errno is not None and error.strerror == os.strerror(error.errno):
            error.strerror += f" to user {_name(owner.uid)}, whose rights root uses there"
        raise
    finally:
        _become(before)


def _require_no_other_thread() -> None:
    this = threading.current_thread()
    for thread in threading.enumerate():
        if thread is not this and not thread.name.startswith(_IDLE_WORKER):
            raise RuntimeError(f"the rights of the process cannot change while {thread.name!r} runs")


def owner_of(path: Path) -> Owner:
    """Return the first user other than root who owns a part of ``path``, or root. Raises ``OSError``."""
    at, links = Path("/"), 0
    rest = list(path.absolute().parts[1:])
    while rest:
        part = rest.pop(0)
        if part == "..":  # Part of a link of root.
            at = at.parent
            continue
        try:
            status = (at / part).lstat()
        except FileNotFoundError:
            return _ROOT_OWNER
        if status.st_uid != _ROOT and _exists(status.st_uid):
            return Owner(status.st_uid, status.st_gid)
        if not stat.S_ISLNK(status.st_mode):
            at /= part
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = (at / part).readlink()
        rest = [*(target.parts[1:] if target.is_absolute() else target.parts), *rest]
        at = Path("/") if target.is_absolute() else at
    return _ROOT_OWNER


def _exists(uid: int) -> bool:
    """Whether this user namespace has the user. user_namespaces(7) describes the file."""
    try:
        ranges = [line.split() for line in _MAPPED.read_text().splitlines()]
    except OSError:  # This system is not Linux.
        return True
    return any(int(first) <= uid < int(first) + int(count) for first, _, count in ranges)


def _user(owner: Owner) -> _User:
    try:
        known = pwd.getpwuid(owner.uid)
    except KeyError:  # A container's user may have no name on this machine.
        return _User(owner.uid, owner.gid, [owner.gid])
    return _User(owner.uid, known.pw_gid, os.getgrouplist(known.pw_name, known.pw_gid))


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _become(user: _User) -> None:
    os.seteuid(_ROOT)
    if list(user.groups) != os.getgroups():
        os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
