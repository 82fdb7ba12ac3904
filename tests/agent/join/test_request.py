"""The request of a join: its names, servers and services, and the configuration that it writes."""

from __future__ import annotations

import datetime
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.token import make_token
from tunnel_agent.certificate.est_client import parse_page
from tunnel_agent.checks import CheckFailed
from tunnel_agent.config import AgentConfig, Protocol
from tunnel_agent.join.config_text import config_text, missing_text
from tunnel_agent.join.request import (
    JoinRequest,
    NewService,
    check_given_name,
    choose_name,
    parse_server,
    parse_service,
)
from tunnel_agent.network.clock_check import MOST_SECONDS, compare_clocks
from tunnel_core.config.loader import Source, parse
from tunnel_core.names import split_host_port

SERVER = "tunnel.example.com:7002"
WEB = parse_service("web=http://127.0.0.1:1880")


def read(text: str) -> AgentConfig:
    return parse(
        tomllib.loads(text), AgentConfig, Source(Path("/etc/qanat/agent.toml"), Path("/var/lib/qanat"))
    )


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("tunnel.example.com", SERVER),
        ("Tunnel.Example.com:443", "tunnel.example.com:443"),
        ("192.0.2.1", "192.0.2.1:7002"),
        ("2001:db8::1", "[2001:db8::1]:7002"),
        ("[2001:db8::1]", "[2001:db8::1]:7002"),
        ("[2001:db8::1]:99", "[2001:db8::1]:99"),
    ],
)
def test_a_server_is_a_host_and_perhaps_a_port(text: str, server: str) -> None:
    assert parse_server(text) == server


@pytest.mark.parametrize(
    "text", ["", "https://tunnel.example.com", "a b", "host:0", "host:99999", "u@host", "host:"]
)
def test_an_invalid_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_server(text)


@given(st.text(max_size=30))
def test_a_server_is_read_or_refused(text: str) -> None:
    try:
        server = parse_server(text)
    except ValueError:
        return
    assert parse_server(server) == server


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("web=http://127.0.0.1:1880", NewService("web", "127.0.0.1:1880", Protocol.HTTP)),
        ("web=http://db.local", NewService("web", "db.local:80", Protocol.HTTP)),
        ("web=https://[::1]/", NewService("web", "[::1]:443", Protocol.HTTPS)),
        ("db=tcp://db.local:5432", NewService("db", "db.local:5432", Protocol.TCP)),
        ("db=db.local:5432", NewService("db", "db.local:5432", Protocol.TCP)),
        ("docker=unix:/run/docker.sock", NewService("docker", "unix:/run/docker.sock", Protocol.TCP)),
    ],
)
def test_a_service_is_a_name_and_a_url(text: str, service: NewService) -> None:
    assert parse_service(text) == service
    assert (
        str(read(config_text(JoinRequest(SERVER, "edge1", (service,)), "node.pem")).service[0].target)
        == service.target
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("web", "NAME=URL"),
        ("=http://x", "NAME=URL"),
        ("web=ftp://x:1", "is not supported"),
        ("web=http://x/path", "without a path"),
        ("web=http://u@x", "without a path"),
        ("db=tcp://db.local", "names no host and port"),
    ],
)
def test_an_invalid_service_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_service(text)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(words, words)
def test_the_written_configuration_has_the_requested_values_whatever_they_contain(
    bundle: str, entry: str
) -> None:
    raw = tomllib.loads(config_text(JoinRequest(SERVER, "edge1", (WEB,), (entry,)), bundle))
    assert (raw["bundle_file"], raw["allow"]) == (bundle, [entry])
    assert raw["service"] == [{"name": "web", "target": "127.0.0.1:1880", "protocol": "http"}]


def test_the_lines_that_an_existing_configuration_lacks_are_printed() -> None:
    there = read('allow = ["localhost:22"]\n[[service]]\nname = "db"\ntarget = "db.local:5432"\n')
    request = JoinRequest(
        SERVER, "edge1", (WEB, parse_service("db=other:1")), ("localhost:22", "localhost:80")
    )
    lacking = missing_text(request, there)
    assert "localhost:80" in lacking and "localhost:22" not in lacking
    assert 'name = "web"' in lacking
    assert "# db is db.local:5432 there, not other:1" in lacking
    assert missing_text(JoinRequest(SERVER, "edge1", allow=("localhost:22",)), there) == ""


@pytest.mark.parametrize("name", ["Edge1", "edge_1", "edge 1", "a" * 254])
def test_a_name_is_one_of_rfc_1123(name: str) -> None:
    with pytest.raises(CheckFailed) as failed:
        check_given_name(name)
    assert "lower-case letters, digits, '-' and dots" in failed.value.fix
    with pytest.raises(CheckFailed) as failed:
        choose_name(NAMELESS, "", name, HOST)
    assert "name the node with --name: lower-case letters" in failed.value.fix


HOST = "this machine's host name"
NAMELESS = make_token(bytes(32), bytes(30))


@pytest.mark.parametrize(
    ("made_for", "given", "host", "node"),
    [
        ("", "", "host", "host"),
        ("", "edge1", "host", "edge1"),
        ("edge1", "", "host", "edge1"),
        ("edge1", "", "Not A Node", "edge1"),
        ("edge1", "edge1", "host", "edge1"),
        ("edge-*", "", "edge-7", "edge-7"),
        ("edge-*", "edge-8", "host", "edge-8"),
        ("edge-*", "edge-8", "edge-7", "edge-8"),
    ],
)
def test_the_name_is_the_given_one_the_tokens_or_the_hosts(
    made_for: str, given: str, host: str, node: str
) -> None:
    assert choose_name(replace(NAMELESS, made_for=made_for), given, host, HOST)[0] == node


@pytest.mark.parametrize(
    ("made_for", "given", "host", "fix"),
    [
        ("edge1", "edge2", "edge1", "omit --name, or ask for another token"),
        ("edge-*", "shop-1", "edge-1", "it must fit edge-*"),
        ("edge-*", "", "host", "--name: it must fit edge-*"),
        ("edge-*", "", "edge-1.local", "* is anything but a dot"),
    ],
)
def test_a_token_for_others_is_refused_by_that_name(made_for: str, given: str, host: str, fix: str) -> None:
    with pytest.raises(CheckFailed, match=made_for.replace("*", "[*]")) as failed:
        choose_name(replace(NAMELESS, made_for=made_for), given, host, HOST)
    assert failed.value.reason == "token_name_mismatch"
    assert fix in failed.value.fix


@pytest.mark.parametrize(
    ("behind", "says"), [(0.0, "agrees"), (60.0, "1 min 0 s behind"), (-60.0, "1 min 0 s ahead of")]
)
def test_clocks_that_differ_a_little_do_no_harm(behind: float, says: str) -> None:
    assert says in compare_clocks(SERVER, behind)


@pytest.mark.parametrize("behind", [MOST_SECONDS, -MOST_SECONDS, 56 * 365.25 * 86400])
def test_clocks_that_differ_much_fail_with_the_cure(behind: float) -> None:
    with pytest.raises(CheckFailed, match="this machine's clock is") as failed:
        compare_clocks(SERVER, behind)
    assert "timedatectl" in failed.value.fix


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
pages = st.fixed_dictionaries(
    {},
    optional={
        "trust_domain": values | st.just("test.internal"),
        "agents": values | st.just(["localhost:7001"]),
        "https": values | st.just(["localhost:7002"]),
        "time": values | st.just("2026-11-26T00:00:00+00:00"),
    },
)


@settings(max_examples=500)
@given(pages | values)
def test_the_page_for_joiners_is_read_or_refused(page: object) -> None:
    now = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
    try:
        read_page = parse_page(json.dumps(page).encode(), now)
    except (ValueError, KeyError, TypeError):
        return
    assert all(split_host_port(address) for address in (*read_page.agents, *read_page.https))
    assert isinstance(read_page.behind, float)
