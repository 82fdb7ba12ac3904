"""An agent that joins by environment variables: real programs, as in a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.bundle import read_bundle
from tests.agent.join.test_join import SOME_TOKEN
from tests.support.processes.cloud import Cloud, Machine, machine, open_cloud
from tests.support.processes.servers import running
from tunnel_agent.join.first_run import CannotJoin, JoinEnvironment, join_at_first_run


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with open_cloud(tmp_path_factory.mktemp("server")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QANAT_OPS_LISTEN", "127.0.0.1:0")


async def attached_as(edge: Machine, monkeypatch: pytest.MonkeyPatch, **environ: str) -> str:
    """Runs it until it is attached; returns the name."""
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    async with running(edge.command("run")) as agent:
        await agent.line("attached to")
        assert not any(SOME_TOKEN in line for line in agent.stray)
    return read_bundle(edge.bundle).identity.name


async def test_it_joins_once_from_a_file_and_then_needs_no_token(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, edge = await cloud.token("edge1"), machine(tmp_path)
    file = tmp_path / "token"
    file.write_text(token)
    where = {"QANAT_SERVER": cloud.https, "QANAT_TOKEN_FILE": str(file)}  # the token names the node
    assert await attached_as(edge, monkeypatch, **where) == "edge1"
    file.unlink()
    assert await attached_as(edge, monkeypatch) == "edge1"
    assert await cloud.uses(token) == 1


async def test_a_token_in_a_variable_and_a_configuration_that_cannot_be_written(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, edge = await cloud.token("edge2"), machine(tmp_path)
    edge.config.write_text('allow = ["localhost:22"]\n')
    elsewhere = tmp_path / "data" / "node.pem"
    monkeypatch.setenv("QANAT_BUNDLE_FILE", str(elsewhere))
    for name, text in {"SERVER": cloud.https, "NODE": "edge2", "TOKEN": token}.items():
        monkeypatch.setenv(f"QANAT_{name}", text)
    async with running(edge.command("run")) as agent:
        await agent.line("attached to")
        assert not any(token in text for text in (*agent.stray, *map(str, agent.lines)))
    assert read_bundle(elsewhere).identity.name == "edge2"
    assert [file.name for file in edge.folder.iterdir()] == ["agent.toml"]
    assert edge.config.read_text() == 'allow = ["localhost:22"]\n'


async def test_a_failed_join_ends_the_agent_with_the_joins_message_and_code(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = machine(tmp_path)
    monkeypatch.setenv("QANAT_SERVER", cloud.https)
    nothing = await edge.run("run")
    assert nothing.returncode == 2
    assert b"needs QANAT_TOKEN_FILE or QANAT_TOKEN" in nothing.stderr
    monkeypatch.setenv("QANAT_TOKEN", SOME_TOKEN)
    monkeypatch.setenv("QANAT_NODE", "edge3")
    stranger = await edge.run("run")
    assert stranger.returncode != 0
    assert b"FAIL" in stranger.stderr
    assert SOME_TOKEN.encode() not in stranger.stderr + stranger.stdout
    assert not edge.bundle.exists()


def test_no_join_without_the_variables_or_beside_a_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "node.pem"
    join_at_first_run({}, bundle, None)
    bundle.write_text("whatever it is, it is not replaced")
    join_at_first_run({"QANAT_SERVER": "localhost:1"}, bundle, None)
    assert [file.name for file in tmp_path.iterdir()] == ["node.pem"]
    with pytest.raises(CannotJoin):
        join_at_first_run({"QANAT_SERVER": "localhost:1"}, tmp_path / "absent", None)


def test_the_variables_become_a_join() -> None:
    given = JoinEnvironment.of(
        {"QANAT_SERVER": "s:1", "QANAT_NODE": "n", "QANAT_TOKEN_FILE": "/t", "QANAT_TOKEN": "x"}
    )
    assert given is not None
    assert given.arguments(Path("/c")) == ["--name", "n", "--token-file", "/t", "--config", "/c", "--", "s:1"]
    assert "'x'" not in repr(given)


async def test_a_named_configuration_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = machine(tmp_path)
    monkeypatch.setenv("QANAT_CONFIG", str(tmp_path / "absent.toml"))
    assert "QANAT_CONFIG" in os.environ
    ran = await edge.run("run")
    assert ran.returncode == 2
    assert b"there is no such file; join a server" in ran.stderr
