"""The pools of a process follow the memory of its cgroup or machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunnel_core.limits import KIB, MIB
from tunnel_core.runtime.memory_limit import memory_bytes, pool_bytes

GIB = 1024 * MIB
UNLIMITED_V1 = 9223372036854771712


class Machine:
    """A copy of the kernel's files of one process: ``proc``, and cgroups under ``mount``."""

    def __init__(self, folder: Path, memory: int = 4 * GIB) -> None:
        self.proc, self.mount = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemTotal:       {memory // KIB} kB\nMemFree:  1 kB\n")

    def cgroups(self, lines: str, *mounts: str) -> None:
        (self.proc / "self/cgroup").write_text(lines)
        (self.proc / "self/mountinfo").write_text("\n".join(mounts) + "\n")

    def v2(self, path: str, root: str = "/") -> None:
        self.cgroups(f"0::{path}\n", self._mounted(root, "cgroup2 cgroup2 rw"))

    def v1(self, path: str, root: str = "/") -> None:
        lines = f"5:cpu,cpuacct:/other\n4:memory:{path}\n0::/\n"
        self.cgroups(lines, self._mounted(root, "cgroup cgroup rw,memory"))

    def _mounted(self, root: str, kind: str) -> str:
        return f"33 24 0:28 {root} {self.mount} rw,nosuid shared:9 - {kind}"

    def limit(self, path: str, name: str, value: object) -> None:
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_limit_the_memory_is_that_of_the_machine(machine: Machine) -> None:
    machine.v2("/a.slice/b.service")
    machine.limit("a.slice", "memory.max", "max")
    machine.limit("a.slice/b.service", "memory.max", "max")
    assert memory_bytes(machine.proc) == 4 * GIB


@pytest.mark.parametrize(("outer", "inner"), [(256 * MIB, "max"), (GIB, 256 * MIB), (256 * MIB, GIB)])
def test_the_smallest_limit_on_the_way_up_counts(machine: Machine, outer: object, inner: object) -> None:
    machine.v2("/a.slice/b.service")
    machine.limit("a.slice", "memory.max", outer)
    machine.limit("a.slice/b.service", "memory.max", inner)
    machine.limit("a.slice/c.service", "memory.max", MIB)  # a sister, which limits nothing here
    assert memory_bytes(machine.proc) == 256 * MIB


def test_a_limit_above_the_memory_is_none(machine: Machine) -> None:
    machine.v2("/")
    machine.limit("", "memory.max", 64 * GIB)
    assert memory_bytes(machine.proc) == 4 * GIB


def test_a_container_with_its_own_namespace_sees_its_cgroup_as_the_root(machine: Machine) -> None:
    machine.v2("/")
    machine.limit("", "memory.max", 256 * MIB)
    assert memory_bytes(machine.proc) == 256 * MIB


def test_version_1_writes_a_huge_number_for_no_limit(machine: Machine) -> None:
    machine.v1("/docker/abc")
    machine.limit("", "memory.limit_in_bytes", UNLIMITED_V1)
    machine.limit("docker/abc", "memory.limit_in_bytes", 512 * MIB)
    assert memory_bytes(machine.proc) == 512 * MIB
    machine.limit("docker/abc", "memory.limit_in_bytes", UNLIMITED_V1)
    assert memory_bytes(machine.proc) == 4 * GIB


@pytest.mark.parametrize("root", ["/docker/abc", "/docker/abc/..", "/somewhere/else", "/../.."])
def test_a_mount_may_show_only_a_part_of_the_tree(machine: Machine, root: str) -> None:
    """In a container of version 1 the path is that of the host, and the mount is the container's cgroup."""
    machine.v1("/docker/abc", root)
    machine.limit("", "memory.limit_in_bytes", 512 * MIB)
    assert memory_bytes(machine.proc) == 512 * MIB


def test_both_versions_at_once(machine: Machine) -> None:
    machine.cgroups(
        "4:memory:/a\n0::/b\n",
        f"33 24 0:28 / {machine.mount} rw - cgroup cgroup rw,memory",
        f"34 24 0:29 / {machine.mount} rw - cgroup2 cgroup2 rw",
        f"35 24 0:30 / {machine.mount} rw - tmpfs tmpfs rw",
        "a line that is short",
    )
    machine.limit("a", "memory.limit_in_bytes", 512 * MIB)
    machine.limit("b", "memory.max", 256 * MIB)
    assert memory_bytes(machine.proc) == 256 * MIB


def test_files_that_cannot_be_read_set_no_limit(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path / "no-proc") is None
    assert pool_bytes(0, tmp_path / "no-proc") == 256 * MIB
    machine = Machine(tmp_path)
    machine.cgroups("0::/gone\nnonsense\n", "33 24 0:28 / /nowhere rw - cgroup2 cgroup2 rw")
    assert memory_bytes(machine.proc) == 4 * GIB


def test_a_pool_is_an_eighth_of_the_memory_and_256_mib_at_most(machine: Machine) -> None:
    machine.v2("/")
    assert pool_bytes(0, machine.proc) == 256 * MIB
    machine.limit("", "memory.max", 256 * MIB)
    assert pool_bytes(0, machine.proc) == 32 * MIB


def test_a_configured_size_is_taken_as_it_is(machine: Machine) -> None:
    machine.v2("/")
    machine.limit("", "memory.max", 256 * MIB)
    assert pool_bytes(512 * MIB, machine.proc) == 512 * MIB


def test_this_process_has_some_memory() -> None:
    memory = memory_bytes()
    assert memory is not None
    assert 16 * MIB < memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
