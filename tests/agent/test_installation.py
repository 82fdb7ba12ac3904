"""The files that an agent starts from: its configuration, its bundle, and the errors if they do not match."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.pki.authority import write_node_bundle, write_user_bundle
from tunnel_agent.installation import load_installation
from tunnel_agent.main import main
from tunnel_core.config import paths
from tunnel_core.config.loader import ConfigError, Problem
from tunnel_core.names import Target


def problem_of(config: Path | None, bundle: Path | None = None) -> Problem:
    with pytest.raises(ConfigError) as caught:
        load_installation(config, bundle)
    [problem] = caught.value.problems
    return problem


def config_in(folder: Path, text: str) -> Path:
    file = folder / "agent.toml"
    file.write_text(text)
    return file


def test_a_bundle_beside_the_file_is_found_and_names_the_servers(tmp_path: Path) -> None:
    write_node_bundle(tmp_path / "node.pem", "edge1", "tunnel.example.com:7001")
    installation = load_installation(config_in(tmp_path, 'allow = ["localhost:22"]'))
    assert installation.node == "edge1"
    assert installation.servers == ("tunnel.example.com:7001",)
    assert installation.policy().find(Target.parse("localhost:22")).is_named


def test_the_files_servers_win_over_the_bundles(tmp_path: Path) -> None:
    write_node_bundle(tmp_path / "node.pem", "edge1", "old.example.com:7001")
    installation = load_installation(config_in(tmp_path, 'servers = ["new.example.com:7001"]'))
    assert installation.servers == ("new.example.com:7001",)


def test_a_bundle_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "agent_config_file", lambda: tmp_path / "absent.toml")
    bundle = write_node_bundle(tmp_path / "edge1.pem", "edge1", "tunnel.example.com:7001")
    assert load_installation(None, bundle).servers == ("tunnel.example.com:7001",)


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    assert "there is no such file" in problem_of(tmp_path / "absent.toml").message


def test_services_and_the_built_in_one_are_announced(tmp_path: Path) -> None:
    write_node_bundle(tmp_path / "node.pem", "edge1", "a:7001")
    text = '[[service]]\nname = "web"\ntarget = "127.0.0.1:1880"\nprotocol = "http"\n'
    installation = load_installation(config_in(tmp_path, text))
    assert [service.name for service in installation.services] == ["web", "status"]
    assert installation.policy().find(Target.parse("127.0.0.1:1880"))


def test_the_message_about_a_missing_bundle_names_the_cure(tmp_path: Path) -> None:
    problem = problem_of(config_in(tmp_path, ""))
    assert problem.key == "bundle_file"
    assert "qanat-server issue node NAME" in problem.fix


@pytest.mark.parametrize(
    ("damage", "fix"),
    [
        (lambda file: file.chmod(0o644), ""),  # the sentence has the command
        (lambda file: file.write_bytes(b"garbage"), "qanat-server issue node NAME"),
        (lambda file: (file.unlink(), file.mkdir()), "correct bundle_file"),
    ],
)
def test_the_cure_of_a_bundle_fits_its_fault(
    tmp_path: Path, damage: Callable[[Path], object], fix: str
) -> None:
    damage(write_node_bundle(tmp_path / "node.pem", "edge1", "a:1"))
    problem = problem_of(config_in(tmp_path, ""))
    assert fix in problem.fix
    assert ("join a server" in problem.fix) == ("issue" in fix)
    assert fix or "chmod 600" in problem.message


def test_a_users_bundle_is_refused(tmp_path: Path) -> None:
    write_user_bundle(tmp_path / "node.pem", "kim", "a:7002")
    assert "is the bundle of spiffe://test.internal/user/kim, not of a node" in (
        problem_of(config_in(tmp_path, "")).message
    )


def test_a_missing_server_is_reported(tmp_path: Path) -> None:
    write_node_bundle(tmp_path / "node.pem", "edge1")
    assert problem_of(config_in(tmp_path, "")).key == "servers"


def test_the_proxy_password_comes_from_its_file(tmp_path: Path) -> None:
    write_node_bundle(tmp_path / "node.pem", "edge1", "tunnel.example.com:7001")
    (tmp_path / "password").write_text("geheim\n")
    text = 'proxy = "http://alice@proxy:3128"\nproxy_password_file = "password"\n'
    installation = load_installation(config_in(tmp_path, text))
    proxy = installation.proxy.proxy_for("tunnel.example.com:7001")
    assert proxy is not None
    assert proxy.url == "http://alice:geheim@proxy:3128"
    assert "geheim" not in repr(installation)
    (tmp_path / "password").unlink()
    assert problem_of(tmp_path / "agent.toml").key == "proxy_password_file"


def test_ops_cannot_use_tls_with_a_nodes_certificate(tmp_path: Path) -> None:
    write_node_bundle(tmp_path / "node.pem", "edge1", "a:7001")
    assert problem_of(config_in(tmp_path, "[ops]\ntls = true\n")).key == "ops.tls"


def test_the_configuration_that_counts_is_shown_whatever_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('allow = ["localhost:22"]\nproxy = "http://kim:hush@proxy:3128"\n')
    monkeypatch.setenv("QANAT_DRAIN_SECONDS", "3")
    arguments = ["config", "show", "--config", str(file), "--bundle", str(tmp_path / "b.pem")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    lines = {line.split(" = ")[0]: line.rpartition("# ")[2] for line in result.stdout.splitlines()}
    assert (lines["allow"], lines["drain_seconds"]) == ("agent.toml:1", "QANAT_DRAIN_SECONDS")
    assert (lines["bundle_file"], lines["servers"]) == ("--bundle", "default")
    assert "hush" not in result.stdout and "proxy is set, not shown" in result.stdout
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert "hush" not in result.stdout
    [proxy] = [one for one in json.loads(result.stdout)["settings"] if one["key"] == "proxy"]
    assert (proxy["value"], proxy["secret"], proxy["place"]) == (None, True, f"{file}:2")
