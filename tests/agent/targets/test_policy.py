"""The allow-list: what is dialled, what is refused, and the line that a refusal proposes to add."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunnel_agent.targets.policy import Policy, Published, guarded_network, parse_entry
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused


def policy(*allow: str, services: tuple[Published, ...] = ()) -> Policy:
    entries = map(parse_entry, allow)
    return Policy(node="edge1", file="/etc/qanat/agent.toml", allow=entries, services=services)


def picks(rules: Policy, target: str, *resolved: str) -> list[str]:
    return rules.pick(rules.find(Target.parse(target)), resolved)


def refusal(rules: Policy, target: str, *resolved: str) -> Refused:
    with pytest.raises(Refused) as caught:
        picks(rules, target, *resolved)
    return caught.value


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        ("10.0.0.5:22", "10.0.0.5:22"),
        ("10.0.0.5:1-1024", "10.0.0.5:1024"),
        ("192.168.1.0/24:80-90", "192.168.1.255:80"),
        ("[2001:db8::/32]:443", "[2001:db8::7]:443"),
        ("[::1]:443", "[::1]:443"),
        ("localhost:10250", "127.0.0.1:10250"),
        ("localhost:10250", "[::1]:10250"),
        ("10.0.0.0/8:80", "[::ffff:10.1.2.3]:80"),
        ("10.0.0.0/8:80", "[64:ff9b::10.1.2.3]:80"),
        ("[64:ff9b::/96]:80", "[64:ff9b::10.1.2.3]:80"),
        ("169.254.169.254:80", "169.254.169.254:80"),
        ("169.254.0.0/16:80", "169.254.1.1:80"),
        ("[fe80::/10]:80", "[fe80::1]:80"),
        ("0.0.0.0/0:1-65535", "8.8.8.8:65535"),
    ],
)
def test_an_address_inside_an_entry_is_allowed(entry: str, target: str) -> None:
    host = Target.parse(target).host
    assert picks(policy(entry), target, host) == [host]


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        ("10.0.0.5:22", "10.0.0.6:22"),
        ("10.0.0.5:22", "10.0.0.5:23"),
        ("localhost:22", "127.0.0.2:22"),
        ("127.0.0.1:22", "[::1]:22"),
        ("0.0.0.0/0:1-65535", "169.254.169.254:80"),
        ("[::/0]:1-65535", "[fd00:ec2::254]:80"),
        ("[::/0]:1-65535", "[fe80::1]:80"),
        ("[::/0]:1-65535", "[::ffff:169.254.169.254]:80"),
        ("[::/0]:1-65535", "[64:ff9b::169.254.169.254]:80"),
        ("0.0.0.0/0:1-65535", "0.0.0.0:22"),
        ("db.local:22", "web.local:22"),
        ("db.local:22", "db.local:23"),
        ("unix:/run/a.sock", "unix:/run/b.sock"),
        ("10.0.0.0/8:80", "unix:/run/b.sock"),
    ],
)
def test_anything_else_is_refused_before_it_is_resolved(entry: str, target: str) -> None:
    with pytest.raises(Refused) as caught:
        policy(entry).find(Target.parse(target))
    assert caught.value.reason is Reason.TARGET_NOT_ALLOWED


def test_each_policy_decides_for_itself() -> None:
    """A policy remembers its answers, and a reload makes a new policy."""
    old, new = policy("10.0.0.0/8:22"), policy("192.168.0.0/16:22")
    for _ in range(2):
        assert picks(old, "db.local:22", "10.1.2.3") == ["10.1.2.3"]
        assert refusal(new, "db.local:22", "10.1.2.3").reason is Reason.TARGET_NOT_ALLOWED
        assert refusal(old, "10.1.2.3:23").reason is Reason.TARGET_NOT_ALLOWED
        assert refusal(new, "10.1.2.3:22").reason is Reason.TARGET_NOT_ALLOWED


def test_nothing_is_allowed_by_default() -> None:
    assert refusal(policy(), "localhost:80").reason is Reason.TARGET_NOT_ALLOWED


def test_the_refusal_names_node_file_and_the_line_to_add() -> None:
    expected = 'node edge1 does not allow 10.0.0.5:22; add "10.0.0.5:22" to allow in /etc/qanat/agent.toml'
    assert refusal(policy(), "10.0.0.5:22").detail == expected


@pytest.mark.parametrize("target", ["10.0.0.5:22", "db.local:5432", "[2001:db8::7]:1", "unix:/run/x.sock"])
def test_the_line_of_a_refusal_cures_it(target: str) -> None:
    line = refusal(policy(), target).detail.split('"')[1]
    assert policy(line).find(Target.parse(target)).is_named or picks(
        policy(line), target, Target.parse(target).host
    )


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0", "fd00:ec2::254"]
)
def test_a_name_that_leads_to_metadata_is_refused_until_the_address_is_named(address: str) -> None:
    error = refusal(policy("db.local:80"), "db.local:80", address)
    assert error.reason is Reason.TARGET_NOT_ALLOWED
    line = error.detail.split('"')[1]
    assert picks(policy("db.local:80", line), "db.local:80", address) == [address]


def test_a_listed_name_allows_what_it_resolves_to() -> None:
    assert picks(policy("db.local:80"), "DB.local:80", "10.1.1.1", "::1") == ["10.1.1.1", "::1"]


def test_a_name_may_resolve_into_an_allowed_network_and_only_that_address_is_dialled() -> None:
    rules = policy("10.0.0.0/8:80")
    assert picks(rules, "web.local:80", "192.168.1.1", "10.0.0.1", "10.0.0.1") == ["10.0.0.1"]
    detail = refusal(rules, "web.local:80", "192.168.1.1").detail
    assert detail.endswith('add "web.local:80" to allow in /etc/qanat/agent.toml')


def test_localhost_as_a_target_is_decided_by_its_addresses() -> None:
    assert picks(policy("127.0.0.1:80"), "localhost:80", "127.0.0.1", "::1") == ["127.0.0.1"]
    assert picks(policy("localhost:80"), "localhost:80", "127.0.0.1", "::1") == ["127.0.0.1", "::1"]


def test_a_service_implies_its_target() -> None:
    rules = policy(services=(Published("web", Target.parse("127.0.0.1:1880"), "http"),))
    assert rules.find(Target(service="web")).target == Target.parse("127.0.0.1:1880")
    assert picks(rules, "127.0.0.1:1880", "127.0.0.1") == ["127.0.0.1"]
    assert picks(rules, "web", "127.0.0.1") == ["127.0.0.1"]


def test_an_unknown_service_names_those_that_exist() -> None:
    rules = policy(services=tuple(Published(n, Target.parse("localhost:1")) for n in ("web", "ssh")))
    error = refusal(rules, "webb")
    assert error.reason is Reason.UNKNOWN_SERVICE
    assert error.detail == "node edge1 publishes no service webb; it publishes: ssh, web"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        "host:0",
        "host:70000",
        "host:90-80",
        "host:1-2-3",
        "host:+80",
        "host: 80",
        "10.0.0.0/33:80",
        "10.0.0.5/8:80",
        "10.0.0:80",
        "2001:db8::/32:443",
        "[10.0.0.0/8]:443",
        "[2001:db8::1%eth0]:443",
        "*:80",
        "host name:80",
        "unix:relative",
        "http://host:80",
    ],
)
def test_an_invalid_entry_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        parse_entry(text)


@pytest.mark.parametrize(
    "text",
    [
        "db.local:80",
        "10.0.0.5:22",
        "10.0.0.0/8:1-1024",
        "[::1]:443",
        "[2001:db8::/32]:443",
        "unix:/run/x.sock",
    ],
)
def test_an_entry_prints_as_it_is_written(text: str) -> None:
    assert str(parse_entry(text)) == text


@given(st.text(max_size=60))
def test_any_text_is_an_entry_or_a_value_error(text: str) -> None:
    try:
        entry = parse_entry(text)
    except ValueError:
        return
    assert [bool(entry.host), entry.network is not None, bool(entry.unix_path)].count(True) == 1


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(8, 32), st.integers(1, 65535))
def test_a_network_allows_exactly_what_shares_its_first_bits(
    address: ipaddress.IPv4Address, base: ipaddress.IPv4Address, bits: int, port: int
) -> None:
    assume(guarded_network(address) is None)
    entry = parse_entry(f"{ipaddress.IPv4Network((base, bits), strict=False)}:{port}")
    shares = int(address) >> (32 - bits) == int(base) >> (32 - bits)
    assert entry.has_address(address, port) == shares
    assert not entry.has_address(address, port % 65535 + 1)
