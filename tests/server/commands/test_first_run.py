"""A server with an empty data folder that gets its names from variables: what it makes, and what it logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from certs.x509 import describe
from tests.support.processes.servers import SERVER, running
from tunnel_core.cli.command_line import CommandError
from tunnel_core.config import paths
from tunnel_core.config.loader import load
from tunnel_server.commands.first_run import install_if_requested
from tunnel_server.config import ServerConfig

TOLD = {"QANAT_INIT_NAME": "Tunnel.Example.com, 203.0.113.5"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a user without privileges."""
    monkeypatch.setattr(paths, "data_folder", lambda: tmp_path / "data")
    return tmp_path / "data"


def test_an_empty_folder_gets_all_that_init_makes_and_only_once(home: Path, tmp_path: Path) -> None:
    file = home / "server.toml"
    made = install_if_requested(TOLD, file)
    assert made is not None
    config = load(file, ServerConfig)
    assert config.trust_domain == "tunnel.example.com"
    names = describe(config.tls.certificate_file.read_bytes()).names
    assert names[:2] == ("tunnel.example.com", "203.0.113.5")
    assert (home / "user.pem").exists()
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert install_if_requested({"QANAT_INIT_NAME": "other.example.com"}, file) is None
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_nothing_is_made_without_the_variables(home: Path) -> None:
    assert install_if_requested({}, home / "server.toml") is None
    assert install_if_requested({"QANAT_INIT_NAME": " ,"}, home / "server.toml") is None
    assert not home.exists()


def test_an_unfinished_init_is_repeated(home: Path) -> None:
    install_if_requested(TOLD, home / "server.toml")
    (home / "init.unfinished").write_text("[]")
    with pytest.raises(CommandError, match="because these exist"):
        install_if_requested(TOLD, home / "server.toml")
    everything = [str(path) for path in home.rglob("*") if path.is_file() and path.name != "init.unfinished"]
    (home / "init.unfinished").write_text(str(everything).replace("'", '"'))
    assert install_if_requested(TOLD, home / "server.toml") is not None
    assert not (home / "init.unfinished").exists()


def test_an_existing_configuration_decides_the_places_and_stays(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    text = f'data_dir = "{tmp_path}/d"\ntrust_domain = "mine"\n[agents]\nlisten = ["[::]:9001"]\n'
    file.write_text(text)
    made = install_if_requested(TOLD, file)
    assert made is not None
    assert file.read_text() == text
    assert (made.trust_domain, made.data_dir) == ("mine", tmp_path / "d")
    assert made.agents[0] == "tunnel.example.com:9001"
    assert not home.exists()


def test_variables_decide_the_places_too(tmp_path: Path) -> None:
    environ = {**TOLD, "QANAT_TRUST_DOMAIN": "other", "QANAT_DATA_DIR": str(tmp_path / "there")}
    made = install_if_requested(environ, tmp_path / "server.toml")
    assert made is not None
    assert (made.trust_domain, made.data_dir) == ("other", tmp_path / "there")


def test_an_invalid_name_is_refused(home: Path) -> None:
    with pytest.raises(CommandError, match="DNS name"):
        install_if_requested({"QANAT_INIT_NAME": "not a name"}, home / "server.toml")
    assert not home.exists()


async def test_the_program_serves_what_it_made_and_names_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        f'data_dir = "{tmp_path}/d"\n'
        + "".join(f'[{name}]\nlisten = ["127.0.0.1:0"]\n' for name in ("agents", "https", "web"))
        + '[ops]\nlisten = "127.0.0.1:0"\n'
    )
    monkeypatch.setenv("QANAT_INIT_NAME", "localhost")
    assert os.environ["QANAT_INIT_NAME"]
    async with running([*SERVER, "run", "--config", str(file)]) as server:
        line = await server.line("created a new server")
        assert line["command"] == "qanat-server token create --node NAME"
        assert "PRIVATE" not in str(line)
        await server.line("ready")
