"""Key files on disk: whole or not there, private whatever the umask, refused if others can read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.files import (
    KeyFileError,
    make_private_folder,
    read_private,
    remove_interrupted,
    remove_staged,
    write_private,
    write_public,
)


@pytest.fixture(params=[0o000, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"k")
    write_public(tmp_path / "certificate", b"c")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "certificate").stat().st_mode & 0o777 == 0o644
    assert read_private(tmp_path / "key") == b"k"


def test_a_new_content_replaces_the_old_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_public(tmp_path / "key", b"old")
    write_private(tmp_path / "key", b"new")
    assert read_private(tmp_path / "key") == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_an_existing_file_is_kept_if_asked(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"old")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"new", replace=False)
    assert read_private(tmp_path / "key") == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "key", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_private(tmp_path / "key", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
    assert read_private(tmp_path / "key") == b"old"


def test_a_symlink_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    write_private(tmp_path / "key", b"k")
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    assert not (tmp_path / "key").is_symlink()


def test_folders_are_private_if_new_and_left_alone_if_not(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "c").mkdir(mode=0o755)
    make_private_folder(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o755


def test_what_is_no_key_file_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "large", b"x" * (256 * 1024 + 1))
    with pytest.raises(KeyFileError, match="larger than 256 KiB"):
        read_private(tmp_path / "large")
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_private(Path("/dev/null"))


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("[key]", ".[key].0123456789abcdef", ".[key].old", "k"):
        (tmp_path / name).touch()
    remove_interrupted(tmp_path / "[key]")
    remove_interrupted(tmp_path / "never")
    assert {file.name for file in tmp_path.iterdir()} == {".[key].old", "k"}


def test_what_a_killed_writer_left_goes_without_the_file(tmp_path: Path) -> None:
    for name in ("key", ".key.0123456789abcdef"):
        (tmp_path / name).touch()
    remove_staged(tmp_path / "key")
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
