"""Key files on disk: complete or absent, private whatever the umask, refused if others can read them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs import file_modes
from certs.file_modes import KeyFileError, check_private, is_mount_point, is_private
from certs.files import (
    make_private_folder,
    read_private,
    real_place,
    remove_interrupted,
    remove_staged,
    write_private,
    write_public,
)


@pytest.fixture(params=[0o000, 0o077, 0o777])
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Set only when ``tmp_path`` is there: with 0777 its owner could not enter it."""
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


def test_new_content_replaces_the_old_and_leaves_no_other_file(tmp_path: Path) -> None:
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


def test_a_file_that_is_no_key_file_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "large", b"x" * (256 * 1024 + 1))
    with pytest.raises(KeyFileError, match="larger than 256 KiB"):
        read_private(tmp_path / "large")
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_private(Path("/dev/null"))


def test_a_device_or_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    """For root that could be /dev/null of the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for act in (lambda: write_private(pipe, b"k"), lambda: remove_interrupted(pipe)):
        with pytest.raises(OSError, match="Not a regular file"):
            act()
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_only_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    for name in ("[key]", ".[key].0123456789abcdef", ".[key].old", "k"):
        (tmp_path / name).touch()
    remove_interrupted(tmp_path / "[key]")
    remove_interrupted(tmp_path / "never")
    assert {file.name for file in tmp_path.iterdir()} == {".[key].old", "k"}


def test_files_of_a_killed_writer_are_removed_without_the_written_one(tmp_path: Path) -> None:
    for name in ("key", ".key.0123456789abcdef"):
        (tmp_path / name).touch()
    remove_staged(tmp_path / "key")
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def status(mode: int, *, owner: int, group: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 1, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "owner", "group", "private"),
    [
        (0o600, 1000, 1000, True),
        (0o400, 0, 0, True),
        (0o440, 0, 2000, True),  # a Secret in a pod with fsGroup 2000
        (0o640, 0, 2000, True),
        (0o660, 1000, 2000, True),  # a file of the pod's own on its volume, after the next start
        (0o640, 1000, 1000, True),
        (0o440, 0, 2001, False),  # a group of others
        (0o640, 0, 0, False),
        (0o440, 1001, 2000, False),  # another user's, who may change it
        (0o444, 0, 2000, False),
        (0o644, 1000, 1000, False),
        (0o604, 1000, 1000, False),
    ],
)
def test_a_group_of_the_process_may_read_files_of_root_or_its_user(
    monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, group: int, private: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [2000])
    assert is_private(status(mode, owner=owner, group=group)) is private
    if private:
        check_private(Path("/etc/qanat/node.pem"), status(mode, owner=owner, group=group))
        return
    with pytest.raises(KeyFileError, match="can be read by others"):
        check_private(Path("/etc/qanat/node.pem"), status(mode, owner=owner, group=group))


def test_the_cure_fits_the_user_who_may_change_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [1000])
    path = Path("/etc/qanat/node.pem")
    with pytest.raises(KeyFileError, match="run: chmod 600 /etc"):
        check_private(path, status(0o644, owner=1000, group=1000))
    with pytest.raises(KeyFileError, match=r"this process is not in its group 2000.*fsGroup"):
        check_private(path, status(0o440, owner=0, group=2000))
    with pytest.raises(KeyFileError, match="it belongs to user id 0; as that user, run: chmod 600"):
        check_private(path, status(0o644, owner=0, group=0))


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 8:17 / /media/usb\040stick rw shared:2 - vfat /dev/sdb1 rw,fmask=0022
41 22 0:50 / /mnt/share rw - cifs //nas/share rw
42 22 8:1 /node.pem /etc/qanat/node.pem rw - ext4 /dev/sda1 rw
"""


def test_on_a_file_system_without_modes_the_mount_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(file_modes, "_MOUNTS", tmp_path / "mountinfo")
    open_to_all = status(0o755, owner=0, group=0)
    with pytest.raises(KeyFileError, match=r"vfat at /media/usb stick has no file modes.*umask=0077.*ignore"):
        check_private(Path("/media/usb stick/kim.pem"), open_to_all)
    with pytest.raises(KeyFileError, match=r"cifs at /mnt/share has no file modes.*file_mode=0600"):
        check_private(Path("/mnt/share/kim.pem"), open_to_all)
    assert is_mount_point(Path("/etc/qanat/node.pem"))
    assert not is_mount_point(Path("/etc/qanat/agent.toml"))
    monkeypatch.setenv("QANAT_KEY_FILE_MODES", "ignore")
    check_private(Path("/mnt/share/kim.pem"), open_to_all)


def test_a_link_stays_and_its_target_gets_the_content(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "node.pem").symlink_to("second")
    (tmp_path / "second").symlink_to("real/node.pem")
    assert real_place(tmp_path / "node.pem") == tmp_path / "real/node.pem"
    assert real_place(tmp_path / "real/node.pem") == tmp_path / "real/node.pem"


def test_another_users_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "node.pem"
    link.symlink_to("elsewhere")
    monkeypatch.setattr(os, "geteuid", lambda: link.lstat().st_uid + 1)
    expected = tmp_path / "elsewhere" if link.lstat().st_uid == 0 else link
    assert real_place(link) == expected


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        real_place(tmp_path / "a")


@pytest.fixture
def fat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make hard links and chmod fail as on FAT. (exFAT by FUSE ignores the chmod; see below.)"""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)


@pytest.mark.usefixtures("fat")
def test_without_hard_links_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"k", replace=False)
    assert read_private(tmp_path / "key") == b"k"
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key", b"other", replace=False)
    write_private(tmp_path / "key", b"new")
    assert read_private(tmp_path / "key") == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


@pytest.mark.usefixtures("fat")
def test_without_hard_links_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_private(tmp_path / "key", b"k", replace=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("silent", [False, True])
def test_a_key_is_not_written_where_every_user_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """FAT refuses the chmod, and CIFS ignores it."""
    chmod = os.fchmod

    def fixed(descriptor: int, mode: int) -> None:
        chmod(descriptor, 0o755)
        if not silent:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", fixed)
    with pytest.raises(OSError, match=r"readable by others.*QANAT_KEY_FILE_MODES=ignore"):
        write_private(tmp_path / "key", b"k")
    assert not list(tmp_path.iterdir())
    write_public(tmp_path / "certificate", b"c")
    monkeypatch.setenv("QANAT_KEY_FILE_MODES", "ignore")
    write_private(tmp_path / "key", b"k")
    assert read_private(tmp_path / "key") == b"k"


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_private(tmp_path / "key", b"k")
    assert read_private(tmp_path / "key") == b"k"
