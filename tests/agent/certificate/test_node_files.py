"""Where a node's bundle can be written: links, volumes of Kubernetes, single mounted files."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from certs import bundle as bundle_module
from certs import file_modes
from certs.bundle import change_bundle, read_bundle, write_bundle
from certs.files import hold_folder
from tests.support.pki import authority as pki
from tunnel_agent.certificate import node_files
from tunnel_agent.certificate.node_files import held, prove_place, require_writable, save_bundle
from tunnel_agent.checks import CheckFailed
from tunnel_core.identity import Role


def secret_volume(folder: Path) -> Path:
    """A Secret as the kubelet mounts it; returns the bundle in it."""
    version = folder / "..2026_01_01"
    version.mkdir(parents=True)
    write_bundle(version / "node.pem", pki.bundle_of(Role.NODE, "edge1", agents=("a.example:7001",)))
    (folder / "..data").symlink_to(version.name)
    (folder / "node.pem").symlink_to("..data/node.pem")
    return folder / "node.pem"


def test_every_writer_of_a_bundle_writes_through_a_symbolic_link(tmp_path: Path) -> None:
    link, real = tmp_path / "node.pem", tmp_path / "kept" / "edge1.pem"
    real.parent.mkdir()
    bundle = pki.bundle_of(Role.NODE, "edge1", agents=("a.example:7001",))
    write_bundle(real, bundle)
    link.symlink_to(real)
    prove_place(link)
    save_bundle(link, replace(bundle, agents=("b.example:7001",)))
    assert link.is_symlink() and read_bundle(real).agents == ("b.example:7001",)
    change_bundle(link, lambda one: replace(one, agents=("c.example:7001",)))
    assert link.is_symlink() and read_bundle(real).agents == ("c.example:7001",)
    assert [file.name for file in real.parent.iterdir()] == ["edge1.pem"]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["node.pem"]


@pytest.mark.parametrize(
    "ask", [prove_place, lambda link: save_bundle(link, pki.bundle_of(Role.NODE, "edge1"))]
)
def test_a_place_that_cannot_be_found_is_named(tmp_path: Path, ask: Callable[[Path], None]) -> None:
    link = tmp_path / "node.pem"
    link.symlink_to(link)
    with pytest.raises(CheckFailed, match="cannot be written: Too many levels of symbolic links"):
        ask(link)


def test_renewal_and_change_hold_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "kept" / "edge1.pem"
    real.parent.mkdir()
    write_bundle(real, pki.bundle_of(Role.NODE, "edge1", agents=("a.example:7001",)))
    (tmp_path / "node.pem").symlink_to(real)
    monkeypatch.setattr(bundle_module, "hold_folder", partial(hold_folder, wait=False))
    with held(real.parent), pytest.raises(BlockingIOError):
        change_bundle(tmp_path / "node.pem", lambda one: one)


def test_a_mounted_secret_is_named_with_the_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = secret_volume(tmp_path / "secret")
    assert read_bundle(bundle).identity.name == "edge1"

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(node_files, "write_private", read_only)
    with pytest.raises(CheckFailed) as caught:
        prove_place(bundle)
    assert "Read-only file system" in caught.value.detail
    assert "initContainer" in caught.value.fix and "bundle_file" in caught.value.fix
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CheckFailed) as caught:
        require_writable(tmp_path / "secret" / "..data")
    assert "initContainer" in caught.value.fix


def test_a_file_that_is_mounted_by_itself_costs_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "node.pem"
    (tmp_path / "mountinfo").write_text(f"42 22 8:1 /node.pem {bundle} rw - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(file_modes, "_MOUNTS", tmp_path / "mountinfo")
    with pytest.raises(CheckFailed, match="is mounted as a single file") as caught:
        prove_place(bundle)
    assert "mount the folder" in caught.value.fix


def test_a_folder_that_cannot_be_locked_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS locks no folder that is open for reading (flock(2))."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(tmp_path):
        pass
