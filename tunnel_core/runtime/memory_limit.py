"""Find the memory that this process may use: the limit of its cgroup, or the memory of the machine.

A container, a systemd unit or a board with little memory kills a process that exceeds the limit. So the pools
that peers can fill follow it. A limit of any cgroup on the way up holds for all cgroups below it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tunnel_core.limits import Limits

_PROC = Path("/proc")
_POOL_SHARE = 8
"""Part of the memory that each of the two pools may take: an eighth."""


def pool_bytes(configured: int, proc: Path = _PROC) -> int:
    """Return the size of each pool of the process: ``configured``, or an eighth of the memory if that is 0.

    Without a configured size the pool has at most ``Limits.credit_pool``, and exactly that if the memory
    cannot be found out. ``proc`` is the folder of the kernel's files.
    """
    most = Limits().credit_pool
    if configured:
        return configured
    memory = memory_bytes(proc)
    return most if memory is None else min(most, memory // _POOL_SHARE)


def memory_bytes(proc: Path = _PROC) -> int | None:
    """Return the smallest limit of the cgroups that hold this process, at most the machine's memory.

    None if no limit can be read, as on systems without ``/proc``.
    """
    return min((*_machine_bytes(proc), *_cgroup_bytes(proc)), default=None)


def _machine_bytes(proc: Path) -> Iterator[int]:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", _text(proc / "meminfo"), re.MULTILINE)
    if found:
        yield int(found[1]) * 1024


def _cgroup_bytes(proc: Path) -> Iterator[int]:
    """Yield the limits of this process's cgroup and of each cgroup above it that is mounted."""
    paths = dict(_cgroup_paths(proc))
    for line in _text(proc / "self/mountinfo").splitlines():
        # proc(5): id, parent, device, root, mount point, options, optional fields, -, type, source, options
        before, _, after = line.partition(" - ")
        mount, kind = before.split(" "), after.split(" ")
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" and "" in paths:
            yield from _limits_above(Path(mount[4]), mount[3], paths[""], "memory.max")
        elif kind[0] == "cgroup" and "memory" in kind[2].split(",") and "memory" in paths:
            yield from _limits_above(Path(mount[4]), mount[3], paths["memory"], "memory.limit_in_bytes")


def _cgroup_paths(proc: Path) -> Iterator[tuple[str, str]]:
    """Yield the path of this process's cgroup for each controller; ``""`` stands for version 2."""
    for line in _text(proc / "self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path


def _limits_above(mount_point: Path, root: str, path: str, name: str) -> Iterator[int]:
    """Yield the limits from the cgroup ``path`` up to ``root``, the cgroup that ``mount_point`` shows.

    ``name`` is the file with the limit. In a container the mount often shows only the cgroup of the
    container, while ``path`` is that of the host.
    """
    inside = os.path.relpath(path or "/", root or "/")
    below = () if inside.startswith("..") else Path(inside).parts
    for depth in range(len(below), -1, -1):
        text = _text(mount_point.joinpath(*below[:depth], name)).strip()
        if text.isdecimal():  # version 2 writes "max" for no limit, version 1 a number beyond any memory
            yield int(text)


def _text(file: Path) -> str:
    """Return the content of a kernel's file; empty if it cannot be read."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
