"""Where the values of a configuration come from, and the lines of a TOML file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel_agent.config import AgentConfig
from tunnel_core.config.effective import as_toml, settings_of
from tunnel_core.config.loader import Source as ConfigSource
from tunnel_core.config.loader import load_given, parse
from tunnel_core.config.toml_lines import key_lines
from tunnel_server.config import ServerConfig

SERVER = """\
# a comment = 1
trust_domain = "test.internal"   # trust_domain = "no"

[agents]
listen = [
    "[::]:7001",  # listen = "x"
    # max = 3
    "127.0.0.1:7009",
]
max = 9
connect.odd = 1

[log]
entrances = { connect = "errors", tcp = "none" }

[[tcp]]
listen = "127.0.0.1:1"
node = "edge1"
target = """
TEXT = SERVER + '\'localhost:22\'\n[[tcp]]\nnode = """\n[web]\ndomain = 5\n"""\nlisten = "127.0.0.1:2"\n'


def test_each_key_has_the_line_in_which_it_begins() -> None:
    lines = key_lines(TEXT)
    assert lines == {
        "trust_domain": 2,
        "agents": 4,
        "agents.listen": 5,
        "agents.max": 10,
        "agents.connect": 11,
        "agents.connect.odd": 11,
        "log": 13,
        "log.entrances": 14,
        "log.entrances.connect": 14,
        "log.entrances.tcp": 14,
        "tcp#1": 16,
        "tcp#1.listen": 17,
        "tcp#1.node": 18,
        "tcp#1.target": 19,
        "tcp#2": 20,
        "tcp#2.node": 21,
        "tcp#2.listen": 25,
    }


def test_tables_below_lists_of_tables_belong_to_the_last() -> None:
    lines = key_lines("[[a]]\n[[a]]\n[a.b]\nc = 1\n[[a.d]]\ne = [{f = 1}, {f = 2}]\r\n[x]\r\n")
    assert lines["a#2.b.c"] == 4
    assert lines["a#2.d#1.e"] == lines["a#2.d#1.e#2.f"] == 6
    assert lines["x"] == 7


def test_a_statement_without_end_costs_no_more_than_its_bound() -> None:
    assert key_lines("a = 1\nb = [\n" + "1,\n" * 100_000 + "]\n") == {"a": 1}


keys = st.sampled_from(["a", "b", "c"])
scalars = st.integers() | st.booleans() | st.text("x#[]='\"\n", max_size=6)


@settings(deadline=None)
@given(st.dictionaries(keys, scalars | st.dictionaries(keys, scalars, max_size=2), max_size=3))
def test_every_key_of_a_file_has_a_line_that_names_it(raw: dict[str, Any]) -> None:
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in raw.items() if not isinstance(value, dict))
    for key, value in raw.items():
        if isinstance(value, dict):
            text += f"[{key}]\n" + "".join(f"{name} = {_toml(one)}\n" for name, one in value.items())
    assert tomllib.loads(text) == raw
    found, lines = key_lines(text), text.split("\n")
    for key, number in found.items():
        assert key.rpartition(".")[2] in lines[number - 1]
    assert found.keys() >= raw.keys()


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(
        'data_dir = "d"\n[connect.unix]\npath = "c.sock"\n[[connect.unix.peer]]\nuid = 0\nuser = "root"\n'
        '[log.entrances]\nweb = "none"\n[[tcp]]\nlisten = "127.0.0.1:1"\nnode = "a"\ntarget = "b:1"\n'
    )
    return path


def test_each_value_has_its_origin(file: Path) -> None:
    environ = {"QANAT_AGENTS_MAX": "9", "QANAT_DATA_DIR": "/else"}
    config, given = load_given(file, ServerConfig, environ=environ)
    settings = {one.key: (one.value, one.origin.value, one.place) for one in settings_of(config, given)}
    assert settings["agents.max"] == (9, "environment", "QANAT_AGENTS_MAX")
    assert settings["data_dir"] == ("/else", "environment", "QANAT_DATA_DIR")
    assert settings["connect.unix.path"] == (str(file.parent / "c.sock"), "file", f"{file}:3")
    assert settings["connect.unix.peer#1.user"] == ("root", "file", f"{file}:6")
    assert settings["connect.unix.mode"] == ("0600", "default", "")
    assert settings["log.entrances.web"] == ("none", "file", f"{file}:8")
    assert settings["tcp#1.node"] == ("a", "file", f"{file}:11")
    assert settings["tcp#1.allow_from"] == ([], "default", "")
    assert settings["tls.key_file"] == ("/else/server.key", "default", "")


@pytest.mark.parametrize("schema", [ServerConfig, AgentConfig])
def test_the_shown_configuration_has_the_same_meaning(file: Path, tmp_path: Path, schema: type[Any]) -> None:
    if schema is AgentConfig:
        file = tmp_path / "agent.toml"
        file.write_text(
            'allow = ["localhost:22", "10.0.0.0/8:80-90"]\n[[service]]\nname = "web"\ntarget = "a:1"\n'
            'protocol = "http"\n[session]\nretry_max_seconds = 1.5\n'
        )
    config, given = load_given(file, schema, environ={})
    shown = as_toml(settings_of(config, given), file)
    assert parse(tomllib.loads(shown), schema, ConfigSource(file, tmp_path)) == config


def test_a_secret_is_not_shown_wherever_it_was_set(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('proxy = "http://kim:hush@proxy:3128"\n')
    for environ in ({}, {"QANAT_PROXY": "http://kim:hush@proxy:3128"}):
        settings = settings_of(*load_given(file, AgentConfig, environ=environ))
        shown = as_toml(settings, file)
        assert "# proxy is set, not shown" in shown
        assert "hush" not in f"{shown}{[one.as_json() for one in settings]}"
