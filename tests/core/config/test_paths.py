from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from tunnel_core.config import paths


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without privileges whose folders lie below ``tmp_path``."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_root_uses_the_folders_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert paths.server_config_file() == Path("/etc/qanat/server.toml")
    assert paths.agent_config_file() == Path("/etc/qanat/agent.toml")
    assert paths.node_bundle_file() == Path("/etc/qanat/node.pem")
    assert paths.admin_socket() == Path("/var/lib/qanat/admin.sock")


def test_a_person_uses_the_folders_of_the_desktop(person: Path) -> None:
    assert paths.config_folder() == person / "config/qanat"
    assert paths.data_folder() == person / "data/qanat"


def test_the_option_wins_over_the_environment(person: Path) -> None:
    environ = {"QANAT_BUNDLE": "/from/environment"}
    assert paths.find_user_bundle(Path("/from/option"), environ) == Path("/from/option")
    assert paths.find_user_bundle(None, environ) == Path("/from/environment")


def test_the_default_bundle_counts_only_if_it_exists(person: Path) -> None:
    assert paths.find_user_bundle(None, {"QANAT_BUNDLE": ""}) is None
    paths.config_folder().mkdir(parents=True)
    paths.user_bundle_file().write_text("")
    assert paths.find_user_bundle(None, {}) == paths.user_bundle_file()


def test_the_admin_socket_is_found_only_if_it_is_a_socket(person: Path) -> None:
    place = paths.admin_socket()
    place.parent.mkdir(parents=True)
    place.write_text("")
    assert paths.find_admin_socket() != place
    place.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        assert paths.find_admin_socket() == place


def test_a_data_folder_of_ones_own_has_its_socket() -> None:
    assert paths.admin_socket(Path("/data")) == Path("/data/admin.sock")


def test_a_missing_right_names_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    message = paths.with_rights_hint(PermissionError(errno.EACCES, "Permission denied"))
    assert message.startswith("Permission denied; run this as") and message.endswith("with sudo")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    message = paths.with_rights_hint(PermissionError(errno.EACCES, "Permission denied"))
    assert message.startswith("Permission denied; root has no access here because of a container")
    assert (
        paths.with_rights_hint(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    )
