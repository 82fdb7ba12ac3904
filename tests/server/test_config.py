from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunnel_core.config.loader import ConfigError, Source, parse
from tunnel_core.config.types import ListenAddress, LogFormat, StreamLog
from tunnel_core.limits import MIB
from tunnel_core.names import Target
from tunnel_server.config import ServerConfig, TlsVersion, session_limits

SOURCE = Source(Path("/etc/qanat/server.toml"), Path("/var/lib/qanat"))


def read(**raw: Any) -> ServerConfig:
    return parse(raw, ServerConfig, SOURCE)


def problem_of(**raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**raw)
    (problem,) = caught.value.problems
    return str(problem).removeprefix("/etc/qanat/server.toml: ")


def test_an_empty_file_is_a_whole_configuration() -> None:
    config = read()
    assert config.trust_domain == "qanat.internal"
    assert config.agents.listen == (ListenAddress("::", 7001),)
    assert config.https.listen == (ListenAddress("::", 7002),)
    assert config.web.listen == (ListenAddress("127.0.0.1", 7003),)
    assert config.ops.listen == ListenAddress("127.0.0.1", 7004)
    assert config.tls.min_version is TlsVersion.TLS_1_3
    assert config.tls.key_file == Path("/var/lib/qanat/server.key")
    assert config.admin.socket == Path("/var/lib/qanat/admin.sock")
    assert config.admin.mode == 0o600
    assert config.connect.enabled
    assert config.connect.unix is None
    assert config.drain_seconds == 8
    assert config.metrics.per_node


@pytest.mark.parametrize("size", [1, -1, MIB - 1, 2**41])
def test_a_pool_has_at_least_a_mib(size: int) -> None:
    problem = problem_of(session={"pool_bytes": size})
    assert problem == f"session.pool_bytes: {size} bytes is out of range; write 0, or a number from {MIB}"


def test_both_pools_have_the_given_size() -> None:
    assert read(session={"pool_bytes": MIB}).session.pool_bytes == MIB
    config = read()
    assert config.session.pool_bytes == 0
    limits = session_limits(config, 5 * MIB)
    assert (limits.credit_pool, limits.send_pool) == (5 * MIB, 5 * MIB)


def test_the_data_folder_moves_what_is_in_it() -> None:
    config = read(data_dir="data", tls={"trust_file": "roots.pem"})
    assert config.data_dir == Path("/etc/qanat/data")
    assert config.admin.socket == Path("/etc/qanat/data/admin.sock")
    assert config.tls.certificate_file == Path("/etc/qanat/data/server.pem")
    assert config.tls.trust_file == Path("/etc/qanat/roots.pem")


def test_a_wrong_data_folder_is_one_problem() -> None:
    assert problem_of(data_dir=5).startswith("data_dir: is not a file name")


def test_everything_can_be_set() -> None:
    config = read(
        agents={"listen": ["0.0.0.0:0", "[::1]:7001"], "max": 10},
        https={"listen": []},
        connect={
            "unix": {"path": "/run/q.sock", "mode": "0660", "peer": [{"uid": 0, "user": "kube-apiserver"}]}
        },
        tcp=[
            {
                "listen": "0.0.0.0:2222",
                "node": "edge-1",
                "target": "localhost:22",
                "allow_from": ["10.0.0.0/8"],
            }
        ],
        log={"format": "json", "streams": "errors", "entrances": {"tcp": "all"}},
        ops={"listen": "", "bearer_file": "token"},
        limits={"max_unauthenticated_per_source": 3},
        session={"ping_interval_seconds": 0.5, "missed_pings": 1},
    )
    assert config.agents.listen[0].port == 0
    assert config.connect.unix is not None
    assert config.connect.unix.peer[0].user == "kube-apiserver"
    assert config.connect.unix.mode == 0o660
    assert config.tcp[0].target == Target(host="localhost", port=22)
    assert config.log.format is LogFormat.JSON
    assert config.log.streams_of("tcp") is StreamLog.ALL
    assert config.log.streams_of("connect") is StreamLog.ERRORS
    assert config.ops.listen is None
    assert config.ops.bearer_file == Path("/etc/qanat/token")


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (
            {"web": {"listen": ["127.0.0.1:1", "0.0.0.0:80"]}},
            'web.listen: 0.0.0.0:80 is reachable from other machines, and login is "none"; '
            'listen on loopback: "127.0.0.1:7003", or write login = "certificate" with [[web.certificate]]',
        ),
        (
            {"tcp": [{"listen": "[::]:22", "node": "a", "target": "b:1"}]},
            "tcp#1.listen: [::]:22 is reachable from other machines, and a tcp entrance has no login; "
            'add allow_from = ["10.0.0.0/8"] or listen on loopback',
        ),
        (
            {"session": {"grace_seconds": 7200}},
            "session.grace_seconds: 7200 is out of the range that agents accept; write 0 or 0.001 to 3600",
        ),
        (
            {"session": {"ping_interval_seconds": 0.05}},
            "session.ping_interval_seconds: 0.05 is out of the range that agents accept; write 0.1 to 3600",
        ),
        (
            {"session": {"missed_pings": 101}},
            "session.missed_pings: 101 is out of the range that agents accept; write 1 to 100",
        ),
        ({"agents": {"listen": []}}, "agents.listen: is empty, so no agent could attach; write"),
        ({"tls": {"min_version": "1.1"}}, "tls.min_version: '1.1' is not one of 1.2, 1.3"),
        ({"trust_domain": "Qanat"}, "trust_domain: not a trust domain: 'Qanat'; write"),
        ({"connect": {"unix": {"path": "/" + "x" * 107}}}, "connect.unix.path: is longer than the 107 bytes"),
        (
            {"connect": {"unix": {"path": "s", "peer": [{"uid": 0, "user": "a"}, {"uid": 0, "user": "b"}]}}},
            "connect.unix.peer: names one uid twice; give each uid one user",
        ),
        (
            {"tcp": [{"listen": "127.0.0.1:1", "node": "Edge", "target": "b:1"}]},
            "tcp#1.node: 'Edge' is not a node",
        ),
        (
            {"tcp": {"listen": "127.0.0.1:1", "node": "a", "target": "b:1"}},
            "tcp: is one table, not a list of tables; write its head as [[tcp]]",
        ),
        (
            {"connect": {"unix": {"path": "s", "peer": {"uid": 0, "user": "a"}}}},
            "connect.unix.peer: is one table, not a list of tables; write its head as [[connect.unix.peer]]",
        ),
        (
            {"agents": [{"max": 1}]},
            "agents: is a list of tables, not one table; write its head as [agents]",
        ),
        (
            {"tcp": [{"listen": "127.0.0.1:1", "node": "a", "target": "b:1", "drain_seconds": 1}]},
            "tcp#1.drain_seconds: unknown key; it is a key of the whole file: write it above the first",
        ),
        ({"log": {"web": {}}}, "log.web: unknown key; it is a table of its own: write its head as [web]"),
        (
            {"connect": {"tcp": []}},
            "connect.tcp: unknown key; it is a list of tables: write the head of each",
        ),
        ({"max_streams": 5}, "max_streams: unknown key; it is a key of [session]: write it below that head"),
        (
            {"web": {"keep_days": 5}},
            "web.keep_days: unknown key; it is a key of [audit]: write it below that",
        ),
        (
            {"web": {"service": [{"name": "red"}, {"name": "red", "host": "keep"}]}},
            "web.service: [[web.service]] has two entries for red; keep one of them",
        ),
        ({"web": {"mode": "0600"}}, "web.mode: unknown key; known: listen, domain, login"),
        (
            {"tcp": [{"listen": "127.0.0.1:1", "node": "a", "target": "http://db:80/x"}]},
            "tcp#1.target: a http:// URL stands where an address belongs; write 'db:80'",
        ),
        (
            {"web": {"listen": ["http://127.0.0.1:80"]}},
            "web.listen#1: a http:// URL stands where an address belongs; write '127.0.0.1:80'",
        ),
        (
            {"web": {"domain": "https://a.example"}},
            "web.domain: a https:// URL stands where an address belongs; write 'a.example'",
        ),
        ({"web": {"domain": "a b"}}, "web.domain: not a host name"),
        ({"session": {"missed_ping": 1}}, "session.missed_ping: unknown key; did you mean missed_pings?"),
    ],
)
def test_invalid_values_are_refused(raw: dict[str, Any], problem: str) -> None:
    assert problem_of(**raw).startswith(problem)
