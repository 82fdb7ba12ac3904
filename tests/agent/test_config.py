from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunnel_agent.config import AgentConfig, Protocol
from tunnel_core.config.loader import ConfigError, Source, parse
from tunnel_core.config.types import ListenAddress
from tunnel_core.names import Target
from tunnel_core.session.profiles import ProfileName

SOURCE = Source(Path("/etc/qanat/agent.toml"), Path("/var/lib/qanat"))


def read(**raw: Any) -> AgentConfig:
    return parse(raw, AgentConfig, SOURCE)


def problem_of(**raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**raw)
    (problem,) = caught.value.problems
    return str(problem).removeprefix("/etc/qanat/agent.toml: ")


def test_an_empty_file_is_a_whole_configuration() -> None:
    config = read()
    assert config.bundle_file == Path("/etc/qanat/node.pem")
    assert config.ops.listen == ListenAddress("127.0.0.1", 7005)
    assert config.servers == ()
    assert config.allow == ()
    assert not config.proxy


def test_everything_can_be_set() -> None:
    config = read(
        servers=["tunnel.example.com:7001", "[2001:db8::1]:7001"],
        bundle_file="/keys/edge.pem",
        proxy="http://user:hush@proxy:3128",
        no_proxy=["10.0.0.0/8", ".internal"],
        allow=["localhost:10250", "192.168.1.0/24:80-90", "unix:/run/x.sock"],
        service=[{"name": "web", "target": "127.0.0.1:1880", "protocol": "http"}],
        dial_timeout_seconds=3,
    )
    assert config.servers[1] == "[2001:db8::1]:7001"
    assert [entry.first_port for entry in config.allow] == [10250, 80, 0]
    assert config.service[0].target == Target(host="127.0.0.1", port=1880)
    assert config.service[0].protocol is Protocol.HTTP
    assert config.proxy.reveal() == "http://user:hush@proxy:3128"
    assert "hush" not in repr(config)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"allow": ["db.local"]}, "allow#1: 'db.local' has no port"),
        ({"allow": [5]}, "allow#1: 5 is not a string; write it in quotes"),
        ({"service": [{"name": "a--b", "target": "b:1"}]}, "service#1.name: 'a--b' is not a service name"),
        ({"service": [{"name": "web", "target": "other"}]}, "service#1.target: other is a service name"),
        (
            {"service": [{"name": "status", "target": "b:1"}]},
            "service#1.name: status is the built-in status page",
        ),
        ({"service": [{"name": "a", "target": "b:1"}] * 2}, "service: a is named twice"),
        (
            {"servers": ["tunnel.example.com"]},
            "servers#1: no port from 1 to 65535 in 'tunnel.example.com'; write",
        ),
        ({"server": ["a:1"]}, "server: unknown key; did you mean servers?"),
        ({"proxy": 5}, "proxy: is not a string"),
        (
            {"service": [{"name": "web", "target": "http://localhost:1880"}]},
            "service#1.target: a http:// URL stands where an address belongs; write 'localhost:1880';"
            ' for browsers a [[service]] also has protocol = "http" or "https"',
        ),
        (
            {"service": [{"name": "web", "target": "https://kim:hush@[::1]/page"}]},
            "service#1.target: a https:// URL stands where an address belongs; write '[::1]:443'",
        ),
        (
            {"allow": ["http://localhost:1880"]},
            "allow#1: a http:// URL stands where an address belongs; write 'localhost:1880'",
        ),
        (
            {"servers": ["https://tunnel.example.com:7001"]},
            "servers#1: a https:// URL stands where an address belongs; write 'tunnel.example.com:7001'",
        ),
        (
            {"service": {"name": "web", "target": "b:1"}},
            "service: is one table, not a list of tables; write its head as [[service]]",
        ),
        (
            {"service": [{"name": "web", "target": "b:1", "allow": ["c:1"]}]},
            "service#1.allow: unknown key; it is a key of the whole file: write it above the first [section]",
        ),
        (
            {"ops": {"proxy": "http://a:1"}},
            "ops.proxy: unknown key; it is a key of the whole file: write it above the first [section]",
        ),
        (
            {"link": {"profile": "mettered"}},
            "link.profile: 'mettered' is not one of default, metered; did you",
        ),
        ({"link": {"profile": "slow"}}, "link.profile: 'slow' is not one of default, metered; write"),
        ({"session": {"pool_bytes": 5}}, "session.pool_bytes: 5 bytes is out of range; write 0, or a number"),
        ({"link": {"profil": "metered"}}, "link.profil: unknown key; did you mean profile?"),
        (
            {"link": {"max_bytes_per_second": 10}},
            "link.max_bytes_per_second: 10 bytes a second is out of range; write 0",
        ),
        (
            {"link": {"max_bytes_per_second": -1}},
            "link.max_bytes_per_second: -1 bytes a second is out of range; write 0",
        ),
        ({"link": {"max_bytes_per_second": "1M"}}, "link.max_bytes_per_second: '1M' is not a whole number"),
    ],
)
def test_invalid_values_are_refused(raw: dict[str, Any], problem: str) -> None:
    assert problem_of(**raw).startswith(problem)


def test_a_metered_link_with_a_cap() -> None:
    link = read(link={"profile": "metered", "max_bytes_per_second": 250_000}).link
    assert (link.profile, link.max_bytes_per_second) == (ProfileName.METERED, 250_000)
    assert read().link.profile is ProfileName.DEFAULT
    assert read().link.max_bytes_per_second == 0


def test_a_refused_proxy_is_reported_without_its_password() -> None:
    problem = problem_of(proxy="https://user:hush@proxy:1")
    assert problem.startswith("proxy: it is a https:// proxy")
    assert "hush" not in problem
