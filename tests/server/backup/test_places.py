"""An altered backup, and folders of another user: the places that a restore writes, and with which rights."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs import file_owner
from certs.file_owner import as_owner, owner_of
from certs.rotation import RotationStep
from tests.server.backup.test_backup import change, everything, in_manifest
from tests.server.commands.test_commands import Command
from tests.server.commands.test_init import Result, run
from tunnel_server.backup.archive import BadBackup, Manifest, Member, open_backup
from tunnel_server.backup.places import Installation, UnknownPlaces, require_known
from tunnel_server.commands.access import load_config
from tunnel_server.pki.rotation_steps import RotationSteps

pytestmark = pytest.mark.without_threads

SERVICE = 54321
"""The user of a service: none that this machine has a name for."""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who works in folders of other users")


def manifest(
    *places: str, data_dir: str = "/var/lib/qanat", config: str = "/etc/qanat/server.toml"
) -> Manifest:
    return Manifest("now", data_dir, config, tuple(Member(place, 0o600, "") for place in places))


USUAL = Installation(
    frozenset({Path("/var/lib/qanat"), Path("/etc/qanat")}), frozenset({Path("/srv/tls/server.key")})
)


def strange(
    *places: str, data_dir: str = "/var/lib/qanat", config: str = "/etc/qanat/server.toml"
) -> list[str]:
    try:
        require_known(manifest(*places, data_dir=data_dir, config=config), USUAL)
    except UnknownPlaces as error:
        return [*map(str, error.needed)]
    return []


def test_the_usual_places_and_those_of_the_installation_that_is_there() -> None:
    usual = ("/var/lib/qanat/store.db", "/var/lib/qanat/ca/2/root.pem", "/etc/qanat/ops/bearer")
    assert strange(*usual, "/srv/tls/server.key") == []


@pytest.mark.parametrize(
    "place",
    [
        "/etc/cron.d/qanat",
        "/etc/ld.so.preload",
        "/root/.ssh/authorized_keys",
        "/var/lib/qanat/.ssh/authorized_keys",  # the home of a service user
        "/var/lib/qanat/.profile",
        "/var/lib/qanat",
        "/var/lib/qanat-other/store.db",
        "/srv/tls/server.key/x",
        "/srv/tls/other.key",
    ],
)
def test_other_places_are_strange(place: str) -> None:
    assert strange("/var/lib/qanat/store.db", place) == [place]


@pytest.mark.parametrize("data_dir", ["/", "/etc", "/var/lib", "/root", "/srv/tls/server.key"])
def test_another_data_folder_is_strange(data_dir: str) -> None:
    assert strange(f"{data_dir.rstrip('/')}/store.db", data_dir=data_dir) == [data_dir]


def test_another_configuration_is_strange() -> None:
    assert strange(config="/etc/passwd") == ["/etc/passwd"]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    places = ("--data-dir", tmp_path / "d", "--config", tmp_path / "etc" / "server.toml")
    assert run("init", "--name", "tunnel.example.com", *places).exit_code == 0
    made = Command(tmp_path / "d")
    made.config = tmp_path / "etc" / "server.toml"
    made("backup", tmp_path / "b.tar")
    return made


def test_a_strange_place_is_refused_with_what_allows_it(command: Command, tmp_path: Path) -> None:
    before = everything(tmp_path)
    result = run("restore", "--force", tmp_path / "b.tar")
    assert result.exit_code == 2
    allow = f"--place {tmp_path / 'd'} --place {tmp_path / 'etc' / 'server.toml'}"
    assert result.stderr.endswith(f"  {allow}\n")
    assert everything(tmp_path) == before
    done = run("restore", "--force", *allow.split(), tmp_path / "b.tar")
    assert done.exit_code == 0, done.stderr
    assert f"\n  {tmp_path / 'd' / 'store.db'}\n" in done.stdout  # shown before


def tampered(command: Command, tmp_path: Path, **changes: object) -> None:
    """Change the member that is the server's key."""

    def alter(name: str, content: bytes) -> bytes:
        if name != "manifest.json":
            return content
        output = json.loads(content)
        member = next(one for one in output["members"] if one["path"].endswith("server.key"))
        member.update(changes)
        return json.dumps(output).encode()

    change(tmp_path / "b.tar", alter)


def test_a_member_that_was_moved_elsewhere_is_not_written(command: Command, tmp_path: Path) -> None:
    target = tmp_path / "home" / ".ssh" / "authorized_keys"
    tampered(command, tmp_path, path=str(target))
    result = run(
        "restore", "--force", "--place", tmp_path / "d", "--place", command.config, tmp_path / "b.tar"
    )
    assert result.exit_code == 2
    assert str(target) in result.stderr
    assert not target.parent.parent.exists()


@pytest.mark.parametrize("mode", [0o4777, 0o644])
def test_a_key_is_private_whatever_mode_the_backup_has(command: Command, tmp_path: Path, mode: int) -> None:
    tampered(command, tmp_path, mode=mode)
    result = run(
        "restore", "--force", "--place", tmp_path / "d", "--place", command.config, tmp_path / "b.tar"
    )
    assert result.exit_code == 0, result.stderr
    assert stat.S_IMODE((tmp_path / "d" / "server.key").stat().st_mode) == 0o600
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "d").glob("*.*") if file.is_file()}
    assert modes == {0o600, 0o644}


def test_the_shown_places_are_the_restored_ones(command: Command, tmp_path: Path) -> None:
    with open_backup(tmp_path / "b.tar") as opened:
        (tmp_path / "b.tar").rename(tmp_path / "moved.tar")
        (tmp_path / "b.tar").write_bytes(b"another")
        (tmp_path / "out").mkdir()
        assert len(opened.extract(tmp_path / "out", tmp_path / "d")) > 5
    with pytest.raises(BadBackup), open_backup(tmp_path / "b.tar"):
        pass


def test_files_of_one_name_are_all_kept(command: Command, tmp_path: Path) -> None:
    (tmp_path / "d" / "server.toml").write_text("mine")
    config = command.config.read_text()
    result = run(
        "restore", "--force", "--place", tmp_path / "d", "--place", command.config, tmp_path / "b.tar"
    )
    assert result.exit_code == 0, result.stderr
    (kept,) = (tmp_path / "d").glob("before-restore-*")
    assert {(kept / name).read_text() for name in ("server.toml", "server.toml.2")} == {"mine", config}


def test_a_folder_in_place_of_a_file_outside_leaves_the_data_as_it_is(
    command: Command, tmp_path: Path
) -> None:
    command.config.unlink()
    command.config.mkdir()
    before = {path.name for path in (tmp_path / "d").iterdir()}
    result = run(
        "restore", "--force", "--place", tmp_path / "d", "--place", command.config, tmp_path / "b.tar"
    )
    assert result.exit_code == 1
    (kept,) = (tmp_path / "d").glob("before-restore-*")
    assert f"the restore stopped: {command.config}: Is a directory; " in result.stderr
    assert f"are in {kept};" in result.stderr
    assert {path.name for path in (tmp_path / "d").iterdir()} - {kept.name, "store.lock"} == before


# Folders of the server's user.


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that every user may enter, unlike that of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


class Service:
    """A server whose data folder belongs to another user, and its backup."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.config = folder / "data", folder / "etc" / "server.toml"
        places = ("--data-dir", self.data, "--config", self.config)
        assert run("init", "--name", "tunnel.example.com", *places).exit_code == 0
        for path in (self.data, *self.data.rglob("*")):
            os.chown(path, SERVICE, SERVICE)
        assert run("backup", "--config", self.config, folder / "b.tar").exit_code == 0
        self.victim = folder / "victim"
        self.victim.mkdir(mode=0o755)
        (self.victim / "root.pem").write_text("root's own")

    def restore(self) -> Result:
        allowed = ("--place", self.data, "--place", self.config)
        return run("restore", "--force", *allowed, self.folder / "b.tar")

    def assert_unhurt(self) -> None:
        assert [path.name for path in self.victim.iterdir()] == ["root.pem"]
        assert (self.victim / "root.pem").read_text() == "root's own"
        assert self.victim.stat().st_uid == 0


@root_only
def test_restored_files_belong_to_the_owner_of_their_folder(site: Path) -> None:
    service = Service(site)
    result = service.restore()
    assert result.exit_code == 0, result.stderr
    assert {path.lstat().st_uid for path in (service.data, *service.data.rglob("*"))} == {SERVICE}
    assert service.config.stat().st_uid == 0
    assert (os.geteuid(), os.getegid()) == (0, 0)


@root_only
def test_a_file_outside_that_its_owner_may_not_replace_leaves_the_data_as_it_is(site: Path) -> None:
    service = Service(site)
    for path in (service.config, service.config.parent):
        os.chown(path, SERVICE + 1, SERVICE + 1)
    service.config.parent.chmod(0o555)
    before = {path.name for path in service.data.iterdir()}
    result = service.restore()
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr
    assert f"are in {service.data}/before-restore-" in result.stderr
    assert before <= {path.name for path in service.data.iterdir()}


@root_only
def test_a_link_in_place_of_the_data_folder_leads_root_nowhere(site: Path) -> None:
    service = Service(site)
    service.data.rename(site / "away")
    service.data.symlink_to(service.victim)
    os.chown(service.data, SERVICE, SERVICE, follow_symlinks=False)
    assert service.restore().exit_code != 0
    service.assert_unhurt()


@root_only
def test_a_link_that_appears_while_root_works_leads_nowhere(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunnel_server.backup import restoring

    service = Service(site)
    make_folders = restoring._make_folders

    def swapped(folder: Path, *, mode: int) -> None:
        make_folders(folder, mode=mode)
        if folder.name == "ca":
            folder.rename(folder.with_name("gone"))
            folder.symlink_to(service.victim)

    monkeypatch.setattr(restoring, "_make_folders", swapped)
    result = service.restore()
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr
    service.assert_unhurt()


@root_only
def test_root_puts_a_backup_into_the_folder_of_a_third_user(site: Path) -> None:
    service = Service(site)
    home = site / "home"
    home.mkdir(mode=0o700)
    os.chown(home, SERVICE + 1, SERVICE + 1)
    result = run("backup", "--config", service.config, home / "c.tar")
    assert result.exit_code == 0, result.stderr
    (home / "c.tar").rename(site / "b.tar")
    assert service.restore().exit_code == 0


@root_only
def test_a_backup_takes_nothing_that_a_link_of_the_servers_user_leads_to(site: Path) -> None:
    service = Service(site)
    secret = site / "shadow"
    secret.write_text("root's own secret")
    secret.chmod(0o600)
    link = service.data / "ca" / "x.pem"
    link.symlink_to(secret)
    os.chown(link, SERVICE, SERVICE, follow_symlinks=False)
    result = run("backup", "--config", service.config, site / "c.tar")
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr
    assert not (site / "c.tar").exists()


@root_only
def test_commands_do_not_open_what_a_link_of_the_servers_user_leads_to(site: Path) -> None:
    service = Service(site)
    empty = site / "empty"
    empty.touch(mode=0o600)
    database = service.data / "store.db"
    database.unlink()
    database.symlink_to(empty)
    os.chown(database, SERVICE, SERVICE, follow_symlinks=False)
    result = run("token", "create", "--node", "edge1", "--config", service.config)
    assert result.exit_code != 0
    assert empty.read_bytes() == b""


@root_only
def test_a_rotation_removes_nothing_where_a_link_of_the_servers_user_leads(site: Path) -> None:
    service = Service(site)
    shutil.copytree(service.data / "ca", service.victim / "ca")
    (service.victim / "ca" / "7").mkdir()
    for path in (service.victim / "ca").iterdir():
        os.chown(path, SERVICE, SERVICE)
    (service.data / "ca").rename(service.data / "away")
    (service.data / "ca").symlink_to(service.victim / "ca")
    result = run("ca", "rotate", "add", "--yes", "--config", service.config)
    assert result.exit_code != 0
    assert "Permission denied" in result.stderr
    assert (service.victim / "ca" / "7").exists()


@root_only
def test_a_step_that_a_running_server_takes_changes_no_rights(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(Service(site).config)
    changed: list[int] = []
    monkeypatch.setattr("os.seteuid", changed.append)
    RotationSteps(config).take(RotationStep.ADD)
    assert not changed


@root_only
def test_rights_change_in_no_process_in_which_other_threads_run(site: Path) -> None:
    (site / "service").mkdir()
    os.chown(site / "service", SERVICE, SERVICE)
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="writer")
    thread.start()
    try:
        with as_owner(site / "none"):
            assert os.geteuid() == 0
        with pytest.raises(RuntimeError, match="while 'writer' runs"), as_owner(site / "service"):
            pass
    finally:
        done.set()
        thread.join()
    assert os.geteuid() == 0


@root_only
def test_the_owner_is_the_first_user_who_can_redirect_the_path(site: Path) -> None:
    (site / "service" / "deep").mkdir(parents=True)
    os.chown(site / "service", SERVICE, SERVICE)
    (site / "link").symlink_to(site / "service" / "deep")
    (site / "loop").symlink_to(site / "loop")
    assert owner_of(site / "service" / "deep" / "none" / "at all").uid == SERVICE  # deep is root's
    assert owner_of(site / "link").uid == SERVICE
    assert owner_of(site / "none" / "at all").uid == 0
    with pytest.raises(OSError, match="symbolic links"):
        owner_of(site / "loop")


@root_only
def test_a_user_outside_of_the_user_namespace_is_passed_over(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "outside" / "inside").mkdir(parents=True)
    os.chown(site / "outside", 65534, 65534)
    os.chown(site / "outside" / "inside", 1000, 1000)
    assert owner_of(site / "outside" / "inside").uid == 65534
    (site / "uid_map").write_text("         0     100000      10000\n")
    monkeypatch.setattr(file_owner, "_MAPPED", site / "uid_map")
    assert owner_of(site / "outside" / "inside").uid == 1000
    monkeypatch.setattr(file_owner, "_MAPPED", site / "none")
    assert owner_of(site / "outside" / "inside").uid == 65534


@root_only
def test_rights_are_those_of_the_innermost_owner_and_come_back(site: Path) -> None:
    (site / "service").mkdir()
    os.chown(site / "service", SERVICE, SERVICE)
    groups = os.getgroups()
    with as_owner(site / "service"):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (SERVICE, SERVICE, [SERVICE])
        with as_owner(site / "none"):
            assert (os.geteuid(), os.getegid()) == (0, 0)
        assert os.geteuid() == SERVICE
    with pytest.raises(KeyError), as_owner(site / "service"):
        raise KeyError
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, groups)


def test_the_archive_of_a_backup_has_no_names_but_numbers(command: Command, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "b.tar") as archive:
        names = archive.getnames()
    assert names == ["manifest.json", *map(str, range(len(names) - 1))]


def test_a_manifest_that_asks_for_a_strange_data_folder(command: Command, tmp_path: Path) -> None:
    change(tmp_path / "b.tar", in_manifest(data_dir="/etc"))
    result = run(
        "restore", "--force", "--place", tmp_path / "d", "--place", command.config, tmp_path / "b.tar"
    )
    assert result.exit_code == 2
    assert "--place /etc\n" in result.stderr
