"""Environment variables override the file: which values, how, and the message of a mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_agent.config import AgentConfig
from tunnel_core.config.environment import lay_over, unknown_in, variables_of
from tunnel_core.config.loader import ConfigError, load, read
from tunnel_core.config.types import ListenAddress, LogLevel, StreamLog
from tunnel_server.config import ServerConfig

FILE = Path("/etc/qanat/agent.toml")


def agent(raw: dict[str, object] | None = None, /, **environ: str) -> AgentConfig:
    return read(raw or {}, FILE, AgentConfig, environ=environ)


def lines_of(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        agent(**environ)
    return str(caught.value).splitlines()


def test_every_kind_of_value_can_be_set() -> None:
    config = agent(
        QANAT_BUNDLE_FILE="/data/node.pem",
        QANAT_OPS_LISTEN="[::]:9000",
        QANAT_PROXY="http://kim:secret@proxy:3128",
        QANAT_DRAIN_SECONDS="2.5",
        QANAT_LINK_MAX_BYTES_PER_SECOND="50000",
        QANAT_LOG_LEVEL="debug",
    )
    assert config.bundle_file == Path("/data/node.pem")
    assert config.ops.listen == ListenAddress("::", 9000)
    assert config.proxy.reveal() == "http://kim:secret@proxy:3128"
    assert (config.drain_seconds, config.link.max_bytes_per_second) == (2.5, 50000)
    assert config.log.level is LogLevel.DEBUG


def test_switches_modes_and_optional_tables_of_the_server() -> None:
    environ = {
        "QANAT_METRICS_PER_NODE": "False",
        "QANAT_CONNECT_UNIX_PATH": "/run/qanat/egress.sock",
        "QANAT_CONNECT_UNIX_MODE": "0660",
        "QANAT_SESSION_GRACE_SECONDS": "0",
        "QANAT_AUDIT_FILE": "",
    }
    config = read({}, FILE, ServerConfig, data_dir=Path("/data"), environ=environ)
    assert config.connect.unix is not None
    assert (config.connect.unix.path, config.connect.unix.mode) == (Path("/run/qanat/egress.sock"), 0o660)
    assert (config.metrics.per_node, config.session.grace_seconds, config.audit.file) == (False, 0, None)
    assert config.data_dir == Path("/data")


def test_the_environment_wins_and_leaves_the_rest_of_the_section() -> None:
    raw = {"log": {"level": "error", "streams": "none"}, "drain_seconds": 3}
    config = agent(raw, QANAT_LOG_LEVEL="info")
    assert (config.log.level, config.log.streams, config.drain_seconds) == (LogLevel.INFO, StreamLog.NONE, 3)
    assert raw == {"log": {"level": "error", "streams": "none"}, "drain_seconds": 3}


def test_a_mistake_names_the_variable_and_one_in_the_file_names_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        agent({"session": {"retry_max_seconds": -1}}, QANAT_DRAIN_SECONDS="soon", QANAT_LOG_LEVEL="loud")
    message = str(caught.value)
    assert "the environment: QANAT_DRAIN_SECONDS: 'soon' is not a number of seconds" in message
    assert "the environment: QANAT_LOG_LEVEL: 'loud' is not one of debug, info" in message
    assert f"{FILE}: session.retry_max_seconds: -1" in message


def test_a_secret_that_is_refused_is_not_repeated() -> None:
    (line,) = lines_of(QANAT_PROXY="socks://kim:hunter2@proxy")
    assert "QANAT_PROXY" in line
    assert "hunter2" not in line


def test_misspelt_variables_are_refused_all_at_once() -> None:
    lines = lines_of(QANAT_LOG_LEVLE="info", QANAT_OPS_BANANA="1", QANAT_DRAIN_SECOND="1")
    assert lines == [
        "the environment: QANAT_DRAIN_SECOND: unknown variable; did you mean QANAT_DRAIN_SECONDS?",
        "the environment: QANAT_LOG_LEVLE: unknown variable; did you mean QANAT_LOG_LEVEL?",
        "the environment: QANAT_OPS_BANANA: unknown variable; unset it",
    ]


@pytest.mark.parametrize(
    "name", ["QANAT_BUNDLE", "QANAT_CONFIG", "QANAT_TOKEN", "QANAT_SERVER", "QANAT_NODE", "QANAT_INIT_NAME"]
)
@pytest.mark.parametrize("schema", [AgentConfig, ServerConfig])
def test_variables_with_a_meaning_of_their_own_are_no_keys(name: str, schema: type[AgentConfig]) -> None:
    assert name not in {one.name for one in variables_of(schema)}
    assert unknown_in({name: "x"}, schema) == []


def test_the_variables_that_kubernetes_sets_for_services_are_ignored() -> None:
    environ = {
        "QANAT_WEB_SERVICE_HOST": "10.0.0.1",
        "QANAT_WEB_SERVICE_PORT_HTTP": "80",
        "QANAT_WEB_PORT": "tcp://10.0.0.1:80",
        "QANAT_WEB_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert unknown_in(environ, ServerConfig) == []
    assert [one.name for one in unknown_in({"QANAT_WEB_HOST": ""}, ServerConfig)] == ["QANAT_WEB_HOST"]


@pytest.mark.parametrize("schema", [AgentConfig, ServerConfig])
def test_lists_have_no_variable_and_no_two_keys_share_one(schema: type[AgentConfig]) -> None:
    found = variables_of(schema)
    assert len({one.name for one in found}) == len(found) > 10
    lists = {"allow", "servers", "no_proxy", "service", "tcp", "agents.listen", "log.entrances"}
    assert not {one.key for one in found} & lists


@given(st.dictionaries(st.sampled_from(variables_of(ServerConfig)), st.text(max_size=12)))
def test_any_text_is_a_configuration_or_an_error_that_names_a_variable(given_ones: dict) -> None:  # type: ignore[type-arg]
    environ = {one.name: text for one, text in given_ones.items() if "\0" not in text}
    try:
        read({}, FILE, ServerConfig, data_dir=Path("/data"), environ=environ)
    except ConfigError as error:
        assert all(problem.file == "the environment" or problem.key for problem in error.problems)


def test_a_section_that_is_no_table_is_left_for_the_schema_to_refuse() -> None:
    variables = {one.name: one for one in variables_of(AgentConfig)}
    assert lay_over({"log": 7}, {variables["QANAT_LOG_LEVEL"]: "info"}) == {"log": 7}


def test_a_file_that_is_not_required_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QANAT_DRAIN_SECONDS", "4")
    assert os.environ["QANAT_DRAIN_SECONDS"] == "4"
    assert load(tmp_path / "agent.toml", AgentConfig, required=False).drain_seconds == 4
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "agent.toml", AgentConfig)
