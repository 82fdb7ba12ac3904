"""``qanat-server init`` and ``issue``: the files after each, and what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import re
import ssl
import stat
import tomllib
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from certs import files
from certs.bundle import read_bundle
from certs.x509 import Usage, describe, proven_leaf
from tunnel_core.config import paths
from tunnel_core.config.loader import Source, load, parse
from tunnel_core.config.types import EntranceName
from tunnel_core.identity import Role, SpiffeId
from tunnel_server.commands.config_text import Ports, config_text
from tunnel_server.config import AuditedStreams, ServerConfig
from tunnel_server.main import main

NAMES = ("--name", "Tunnel.Example.com", "--name", "2001:db8::1")


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="qanat-server")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A made installation; the path is its configuration's."""
    assert run("init", *NAMES, "--data-dir", tmp_path / "server").exit_code == 0
    return tmp_path / "server" / "server.toml"


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# init


def test_its_configuration_loads_and_names_files_that_tls_takes(server: Path) -> None:
    config = load(server, ServerConfig)
    assert config.trust_domain == "tunnel.example.com"
    assert config.data_dir == server.parent
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.tls.certificate_file, config.tls.key_file)
    context.load_verify_locations(config.tls.trust_file)
    pem = config.tls.certificate_file.read_bytes()
    assert describe(pem).names == ("tunnel.example.com", "2001:db8::1", "localhost", "127.0.0.1", "::1")
    identity = proven_leaf(pem, usage=Usage.SERVER, role=Role.SERVER).identity
    assert identity == SpiffeId("tunnel.example.com", Role.SERVER, "main")


def test_its_operator_bundle_leads_to_the_server(server: Path) -> None:
    bundle = read_bundle(server.parent / "operator.pem")
    assert bundle.identity == SpiffeId("tunnel.example.com", Role.USER, "operator")
    assert bundle.agents == ("tunnel.example.com:7001", "[2001:db8::1]:7001")
    assert bundle.https == ("tunnel.example.com:7002", "[2001:db8::1]:7002")


def test_keys_are_private_and_nothing_is_left_over(server: Path) -> None:
    modes = {
        str(file.relative_to(server.parent)): stat.S_IMODE(file.stat().st_mode)
        for file in server.parent.rglob("*")
        if file.is_file()
    }
    assert modes == {
        "ca/root-key.pem": 0o600,
        "ca/root.pem": 0o644,
        "ca/issuing-key.pem": 0o600,
        "ca/issuing.pem": 0o644,
        "server.key": 0o600,
        "server.pem": 0o644,
        "trust.pem": 0o644,
        "operator.pem": 0o600,
        "store.db": 0o600,
        "server.toml": 0o644,
    }
    assert stat.S_IMODE(server.parent.stat().st_mode) == 0o700


def test_init_prints_the_next_commands(tmp_path: Path) -> None:
    result = run("init", *NAMES, "--data-dir", tmp_path / "my server")
    config = f"--config '{tmp_path}/my server/server.toml'"
    assert f"qanat-server run {config}\n" in result.stdout
    assert f"qanat-server token create --node edge1 {config}\n" in result.stdout
    assert f"qanat --bundle '{tmp_path}/my server/operator.pem' nodes\n" in result.stdout


def test_json_output_has_the_same_facts(tmp_path: Path) -> None:
    result = run("init", *NAMES, "--data-dir", tmp_path / "s", "--json", "--trust-domain", "shops")
    made = json.loads(result.stdout)
    assert made["trust_domain"] == "shops"
    assert made["config"] == str(tmp_path / "s" / "server.toml")
    assert made["https"] == ["tunnel.example.com:7002", "[2001:db8::1]:7002"]
    assert made["next"][0] == f"qanat-server run --config {tmp_path}/s/server.toml"


def test_ports_names_and_places_can_be_chosen(tmp_path: Path) -> None:
    ports = ("--agents-port", "1", "--https-port", "2", "--web-port", "3", "--ops-port", "4")
    places = (
        "--data-dir",
        tmp_path / "d",
        "--config",
        tmp_path / "c" / "q.toml",
        "--bundle",
        tmp_path / "b.pem",
    )
    result = run("init", "--name", "hub", "--no-localhost", *ports, *places)
    assert result.exit_code == 0, result.output
    config = load(tmp_path / "c" / "q.toml", ServerConfig)
    assert [one.port for one in (*config.agents.listen, *config.https.listen, *config.web.listen)] == [
        1,
        2,
        3,
    ]
    assert config.ops.listen is not None
    assert config.ops.listen.port == 4
    assert describe(config.tls.certificate_file.read_bytes()).names == ("hub",)
    assert read_bundle(tmp_path / "b.pem").https == ("hub:2",)


def test_without_places_it_uses_the_folders_where_the_commands_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "is_system", lambda: False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    result = run("init", "--name", "localhost")
    assert result.exit_code == 0, result.output
    assert "  qanat-server run\n  qanat-server token create --node edge1\n  qanat nodes\n" in result.stdout
    assert read_bundle(paths.user_bundle_file()).identity.trust_domain == "qanat.internal"
    assert load(paths.server_config_file(), ServerConfig).data_dir == tmp_path / "data" / "qanat"


def test_another_bundle_of_the_user_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "is_system", lambda: False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    paths.user_bundle_file().parent.mkdir(parents=True)
    paths.user_bundle_file().write_text("mine")
    result = run("init", "--name", "localhost")
    assert f"qanat --bundle {tmp_path}/data/qanat/operator.pem nodes\n" in result.stdout
    assert paths.user_bundle_file().read_text() == "mine"


def test_a_second_init_changes_nothing_and_names_what_exists(server: Path) -> None:
    before = everything_in(server.parent)
    result = run("init", *NAMES, "--data-dir", server.parent)
    assert result.exit_code == 2
    assert "nothing was changed, because these exist:" in result.stderr
    assert str(server) in result.stderr
    assert everything_in(server.parent) == before


@pytest.mark.parametrize("name", ["server.toml", "trust.pem", "operator.pem", "ca/issuing.pem"])
def test_a_single_file_in_the_way_is_enough(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    result = run("init", *NAMES, "--data-dir", tmp_path)
    assert result.exit_code == 2
    assert f"because these exist: {tmp_path / name}" in result.stderr
    assert everything_in(tmp_path) == {}


class Died(BaseException):
    """The process was killed: no code after this point runs."""


@pytest.mark.parametrize("survived", range(18))
def test_after_a_crash_at_any_file_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    places = ("--data-dir", tmp_path / "d", "--config", tmp_path / "c" / "server.toml")
    with monkeypatch.context() as patch:
        countdown = iter(range(survived))
        link = Path.hardlink_to

        def link_or_die(self: Path, target: Path) -> None:
            if next(countdown, None) is None:
                raise Died
            link(self, target)

        def die_if_linking_ended(self: Path, missing_ok: bool = False) -> None:
            if next(countdown, None) is None:
                raise Died
            os.unlink(self)  # noqa: PTH108 - its own unlink is the one replaced

        patch.setattr(Path, "hardlink_to", link_or_die)
        patch.setattr(Path, "unlink", die_if_linking_ended)
        with pytest.raises(Died):
            run("init", *NAMES, *places)
    result = run("init", *NAMES, *places)
    assert result.exit_code == 0, result.output
    assert len(everything_in(tmp_path)) == 10
    assert run("issue", "node", "a", "--out", tmp_path / "a.pem", "--config", places[-1]).exit_code == 0


def test_a_journal_that_was_cut_off_stands_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "init.unfinished").write_bytes(b'["/')
    assert run("init", *NAMES, "--data-dir", tmp_path).exit_code == 0


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    with (tmp_path / "init.unfinished").open("wb") as journal:
        fcntl.flock(journal.fileno(), fcntl.LOCK_EX)
        result = run("init", *NAMES, "--data-dir", tmp_path)
    assert result.exit_code == 2
    assert "another init is running" in result.stderr


def test_a_full_disk_is_reported_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(files, "_write_synced", fail)
    result = run("init", *NAMES, "--data-dir", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path / 'x'}: No space left on device" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--name", "https://a"), "--name takes a DNS name or an address"),
        (("--name", "*.example.com"), "--name takes a DNS name or an address"),
        (("--name", "a", "--trust-domain", "A B"), "--trust-domain: not a trust domain"),
        (("--name", "a", "--https-port", "0"), "0 is not in the range"),
        ((), "Missing option '--name'"),
        (("--name", "a", "--data-dir", "x" * 110), "107 bytes that a unix socket may have"),
    ],
)
def test_wrong_arguments_are_reported_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", "--data-dir", ".", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert everything_in(tmp_path) == {}


def test_commented_lines_show_the_defaults() -> None:
    text = config_text("qanat.internal", Path("/d"), Ports())
    whole = re.sub(r"(?m)^# (?=[a-z_]+ = |\[)", "", text)
    source = Source(Path("/c/server.toml"), Path("/d"))
    given, uncommented = (parse(tomllib.loads(one), ServerConfig, source) for one in (text, whole))
    assert uncommented.web.certificate and uncommented.web.service
    assert attrs.evolve(uncommented.web, certificate=(), service=()) == given.web
    assert uncommented.audit.streams == (AuditedStreams(entrance=EntranceName("web")),)
    assert attrs.evolve(uncommented.audit, streams=()) == given.audit
    for section in ("tls", "agents", "admin", "https", "session", "limits", "metrics"):
        assert getattr(uncommented, section) == getattr(given, section)
    assert given == parse({}, ServerConfig, source)
    assert uncommented.drain_seconds == given.drain_seconds
    assert uncommented.connect.unix is not None
    assert uncommented.tcp


@pytest.mark.parametrize("folder", ['/a "b"', "/a\\b", "/ä\t\x7f", "/#x"])
def test_any_folder_name_is_quoted_right(folder: str) -> None:
    text = config_text("qanat.internal", Path(folder), Ports())
    assert tomllib.loads(text)["data_dir"] == folder


# issue


def test_a_node_gets_a_bundle(server: Path, tmp_path: Path) -> None:
    out = tmp_path / "edge 1.pem"
    result = run("issue", "node", "edge1", "--config", server, "--out", out)
    assert result.exit_code == 0, result.output
    bundle = read_bundle(out)
    assert bundle.identity == SpiffeId("tunnel.example.com", Role.NODE, "edge1")
    assert bundle.agents == ("tunnel.example.com:7001", "[2001:db8::1]:7001")
    assert proven_leaf(bundle.chain_pem, usage=Usage.CLIENT).identity == bundle.identity
    assert f"scp '{out}' edge1:/etc/qanat/node.pem" in result.stdout


def test_a_user_gets_a_bundle_where_they_stand(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("issue", "user", "kim@example.com", "--config", server, "--days", "0.5", "--json")
    answer = json.loads(result.stdout)
    assert answer["files"] == ["kim@example.com.pem"]
    assert answer["next"][-1] == "qanat --bundle kim@example.com.pem nodes"
    assert answer["next"][0].startswith("qanat-server grant add --user kim@example.com ")
    assert read_bundle(tmp_path / "kim@example.com.pem").identity.name == "kim@example.com"


def test_a_program_gets_pem_files(server: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pem"
    result = run("issue", "user", "kube-apiserver", "--config", server, "--pem", folder)
    assert result.exit_code == 0, result.output
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert {file.name for file in folder.iterdir()} == {"ca.pem", "cert.pem", "key.pem"}
    assert "curl -p -x https://tunnel.example.com:7002 --proxy-cert" in result.stdout


def test_a_bundle_can_be_piped(server: Path, tmp_path: Path) -> None:
    result = run("issue", "node", "edge1", "--config", server, "--out", "-", "--json")
    (tmp_path / "piped.pem").touch(mode=0o600)
    (tmp_path / "piped.pem").write_text(result.stdout)
    assert read_bundle(tmp_path / "piped.pem").identity.name == "edge1"
    assert "Issued node edge1" in result.stderr


def test_nothing_is_overwritten(server: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("mine")
    for option, place in (("--pem", tmp_path), ("--out", tmp_path / "key.pem")):
        result = run("issue", "user", "kim", "--config", server, option, place)
        assert result.exit_code == 2
        assert f"because these exist: {tmp_path / 'key.pem'}" in result.stderr
    assert (tmp_path / "key.pem").read_text() == "mine"
    assert not (tmp_path / "cert.pem").exists()


@pytest.mark.parametrize("name", ["Edge1", "edge_1", "../x", "", "a" * 254, "a b", "é"])
def test_bad_names_are_refused_clearly(server: Path, name: str) -> None:
    result = run("issue", "node", "--config", server, "--", name)
    assert result.exit_code == 2
    assert "a node name has lower-case letters" in result.stderr


def test_a_validity_beyond_the_authority_is_refused(server: Path) -> None:
    result = run("issue", "node", "edge1", "--config", server, "--days", "3000")
    assert result.exit_code == 2
    assert "ask for fewer days" in result.stderr


def test_without_a_server_issue_names_init(tmp_path: Path) -> None:
    result = run("issue", "node", "edge1", "--config", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "qanat-server init --name" in result.stderr


def test_another_trust_domain_than_the_configured_is_refused(server: Path) -> None:
    text = server.read_text().replace('trust_domain = "tunnel', 'trust_domain = "other')
    server.write_text(text)
    result = run("issue", "node", "edge1", "--config", server)
    assert result.exit_code == 2
    assert "the server would refuse its certificates" in result.stderr


def test_a_missing_server_certificate_is_named(server: Path) -> None:
    (server.parent / "server.pem").unlink()
    result = run("issue", "node", "edge1", "--config", server)
    assert result.exit_code == 2
    assert "server.pem cannot be read" in result.stderr


def test_a_server_without_its_authority_is_reported(server: Path) -> None:
    (server.parent / "ca" / "issuing-key.pem").unlink()
    result = run("issue", "node", "edge1", "--config", server)
    assert result.exit_code == 2
    assert "issuing-key.pem cannot be read: No such file or directory" in result.stderr
