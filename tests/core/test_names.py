from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tunnel_core.names import (
    MAX_ALIAS,
    MAX_NODE_NAME,
    Target,
    canonical_host,
    is_host_name,
    is_label,
    is_node_name,
    is_service_name,
    join_host_port,
    node_alias,
    split_host_port,
)

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
node_names = (
    st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= MAX_NODE_NAME)
)
ports = st.integers(1, 65535)
LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])


@pytest.mark.parametrize(
    "name", ["a", "0", "edge-1", "edge--1", "edge1.plant.example", "1.2.3.4", "a" * 63, LONGEST]
)
def test_node_names(name: str) -> None:
    assert is_node_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "A",
        "ä",
        "a_b",
        "a b",
        "a\n",
        "a" * 64,
        LONGEST + "b",
        "a/b",
        "a:1",
    ],
)
def test_invalid_node_names(name: str) -> None:
    assert not is_node_name(name)


@pytest.mark.parametrize(
    ("text", "label", "service"),
    [
        ("web", True, True),
        ("my-web", True, True),
        ("my--web", True, False),
        ("a.b", False, False),
        ("", False, False),
    ],
)
def test_a_service_is_a_label_without_the_separator_of_web_hosts(
    text: str, label: bool, service: bool
) -> None:
    assert (is_label(text), is_service_name(text)) == (label, service)


# Aliases.


@given(node_names)
@example(LONGEST)
@example("a--b")
@example("a." * 30 + "a")
@example("0" * 31 + "-" + "0" * 20)
def test_an_alias_is_short_and_fits_a_label_beside_a_service(name: str) -> None:
    alias = node_alias(name)
    assert len(alias) <= MAX_ALIAS
    assert is_service_name(alias)
    assert node_alias(name) == alias


def test_a_name_that_fits_is_its_own_alias() -> None:
    assert node_alias("edge-1") == "edge-1"
    assert node_alias("e" * 40) == "e" * 40


def test_aliases_are_stable_across_versions() -> None:
    assert node_alias("edge1.plant.example") == "edge1-plant-example-avsxoay7"
    assert node_alias("e" * 41) == "e" * 31 + "-" + node_alias("e" * 41)[-8:]


@given(node_names, node_names)
@example("edge.1", "edge-1")
@example("edge.1", node_alias("edge.1"))
@example("a--b", "a-b")
def test_two_nodes_have_two_aliases(one: str, other: str) -> None:
    assume(one != other)
    assert node_alias(one) != node_alias(other)


@given(node_names)
def test_no_node_has_the_name_of_another_nodes_alias(name: str) -> None:
    alias = node_alias(name)
    if alias != name:
        assert node_alias(alias) != alias


# Hosts and ports.


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:80", "localhost", 80),
        ("LocalHost.:80", "localhost", 80),
        ("192.168.1.20:65535", "192.168.1.20", 65535),
        ("[::1]:1", "::1", 1),
        ("[2001:DB8::0:1]:443", "2001:db8::1", 443),
        ("db.local:5432", "db.local", 5432),
        ("My_Db:5432", "my_db", 5432),
        ("project-my_db_1.default:1", "project-my_db_1.default", 1),
        ("_dns.example:53", "_dns.example", 53),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert split_host_port(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":80",
        "host:",
        "host:0",
        "host:080",
        "host:65536",
        "host:+80",
        "host:\N{FULLWIDTH DIGIT EIGHT}0",
        "host: 80",
        "host:80 ",
        "::1:80",
        "[::1]",
        "[::1%eth0]:80",
        "[::1:80",
        "::1]:80",
        "[1.2.3.4]:80",
        "[host]:80",
        "[]:80",
        "user@host:80",
        "ho st:80",
        "1.2.3:80",
        "01.2.3.4:80",
        "1.2.3.4.5:80",
        "0x7f.1:80x",
        "host.1:80",
        "-a:80",
        "a_-:80",
        "a_b.1:80",
        "a" * 63 + "_:80",
        ".:80",
        "a..b:80",
        "host/path:80",
        "host:80\n",
        "127.1:80",
        "2130706433:80",
        "\N{FULLWIDTH LATIN SMALL LETTER H}ost:80",
    ],
)
def test_ambiguous_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"port|address|host"):
        split_host_port(text)


host_labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", fullmatch=True)
host_names = (
    st.lists(host_labels, min_size=1, max_size=4)
    .map(".".join)
    .filter(lambda name: len(name) <= MAX_NODE_NAME)
)


@given(node_names)
def test_every_node_name_is_a_host_name(name: str) -> None:
    assert is_host_name(name)


@given(host_names)
@example("my_db")
def test_only_an_underscore_makes_a_host_name_no_node_name(name: str) -> None:
    assert is_host_name(name)
    assert is_node_name(name) == ("_" not in name)


@given(st.ip_addresses().map(str) | host_names, ports)
def test_joined_addresses_split_into_the_same_parts(host: str, port: int) -> None:
    try:
        canonical = canonical_host(host) if ":" not in host else host
    except ValueError:
        assume(False)
    assert split_host_port(join_host_port(canonical, port)) == (canonical, port)


@given(st.text(max_size=40))
def test_no_text_raises_anything_but_value_error(text: str) -> None:
    for parse in (split_host_port, canonical_host, Target.parse):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)


@given(st.text(alphabet="a1.:[]-_", max_size=12))
def test_one_pass_reaches_the_canonical_spelling(text: str) -> None:
    try:
        host, port = split_host_port(text)
    except ValueError:
        return
    assert split_host_port(join_host_port(host, port)) == (host, port)


# Targets.


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("web", Target(service="web")),
        ("127.0.0.1:1880", Target(host="127.0.0.1", port=1880)),
        ("[::1]:22", Target(host="::1", port=22)),
        ("Node.Local:10250", Target(host="node.local", port=10250)),
        ("my_db:5432", Target(host="my_db", port=5432)),
        ("unix:/run/x.sock", Target(unix_path="/run/x.sock")),
        ("unix:/run/b\u00fccher 100%.sock", Target(unix_path="/run/b\u00fccher 100%.sock")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "my--web",
        "my_web",
        "web.node",
        "Web",
        "unix:",
        "unix:x",
        "unix:/a\0b",
        "unix:/a\nb",
        "unix:/a\x85b",
        "unix:/a ",
        "unix:/a\udcff",
        "unix:/" + "\u00fc" * 54,
        "unix:/" + "a" * 107,
        "a:b",
        "http://a:80",
    ],
)
def test_invalid_targets(text: str) -> None:
    with pytest.raises(ValueError, match=r"service name|socket path|port|host|URL"):
        Target.parse(text)
