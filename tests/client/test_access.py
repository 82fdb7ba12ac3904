"""Which access to the server the command takes, and its message when there is none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from certs.bundle import read_bundle, write_bundle
from tests.support.pki.authority import bundle_of, user_leaf, write_user_bundle
from tunnel_client.access import find_access
from tunnel_client.dial import TlsDialer, UnixDialer
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.config import paths
from tunnel_core.identity import Role


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "is_system", lambda: False)
    monkeypatch.setattr(paths, "_SYSTEM_DATA", tmp_path / "system")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))


def addresses(option: Path | None, environ: dict[str, str]) -> list[str]:
    access = find_access(option, environ)
    assert access.api is access.connect
    assert isinstance(access.api, TlsDialer)
    return list(access.api.addresses)


def test_the_option_wins_then_the_environment_then_the_folder(tmp_path: Path) -> None:
    option = write_user_bundle(tmp_path / "option.pem", "kim", "option:1")
    named = write_user_bundle(tmp_path / "named.pem", "kim", "named:1")
    paths.user_bundle_file().parent.mkdir(parents=True)
    write_user_bundle(paths.user_bundle_file(), "kim", "folder:1", "folder:2")
    environ = {"QANAT_BUNDLE": str(named)}
    assert addresses(option, environ) == ["option:1"]
    assert addresses(None, environ) == ["named:1"]
    assert addresses(None, {}) == ["folder:1", "folder:2"]


def test_without_a_bundle_local_sockets_are_used(tmp_path: Path) -> None:
    paths.admin_socket().parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(paths.admin_socket()))
        access = find_access(None, {})
    assert access.need_api() == UnixDialer(paths.admin_socket())
    with pytest.raises(
        CommandError,
        match=r"no access to a server: .* nor a server's connect socket .*or set .connect.unix. path",
    ):
        access.need_connect()


def test_without_any_access_the_message_lists_the_possible_ones() -> None:
    access = find_access(None, {})
    with pytest.raises(CommandError) as caught:
        access.need_api()
    assert caught.value.exit_code is ExitCode.USAGE
    assert "--bundle or QANAT_BUNDLE" in caught.value.message
    assert str(paths.user_bundle_file()) in caught.value.message


def failure(path: Path) -> str:
    with pytest.raises(CommandError) as caught:
        find_access(path, {})
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value.message


def test_a_bundle_that_cannot_be_used_is_not_passed_over(tmp_path: Path) -> None:
    assert "there is no bundle at" in failure(tmp_path / "none.pem")
    open_to_all = write_user_bundle(tmp_path / "open.pem", "kim", "a:1")
    open_to_all.chmod(0o644)
    assert "chmod 600" in failure(open_to_all)
    nowhere = write_user_bundle(tmp_path / "nowhere.pem", "kim")
    assert "names no server" in failure(nowhere)


def test_a_user_with_a_bundle_is_not_advised_to_make_one(tmp_path: Path) -> None:
    assert "issue user NAME" in failure(tmp_path / "none.pem")
    (tmp_path / "loop").symlink_to("loop")  # stands for missing rights, which root always has
    message = failure(tmp_path / "loop/kim.pem")
    assert "cannot be read: Too many levels" in message
    assert "issue user" not in message


def test_a_key_that_does_not_match_is_reported(tmp_path: Path) -> None:
    bundle = bundle_of(Role.USER, "kim", https=("a:1",))
    other = user_leaf("lee").credential.key_pem
    path = tmp_path / "mixed.pem"
    write_bundle(path, bundle)
    path.write_bytes(path.read_bytes().replace(bundle.key_pem, other))
    assert read_bundle(path)
    assert "do not match" in failure(path)
