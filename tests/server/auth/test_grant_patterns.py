from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.names import Target, is_node_name
from tunnel_core.node_patterns import is_pattern, matches
from tunnel_server.auth.grant_patterns import GrantError, NodePattern, TargetPattern, parse_label


@pytest.mark.parametrize(
    ("pattern", "node", "labels", "matches"),
    [
        ("shop-7", "shop-7", {}, True),
        ("shop-7", "shop-77", {}, False),
        ("shop-*", "shop-7", {}, True),
        ("shop-*", "shop-7.example.com", {}, False),
        ("*.example.com", "shop-7.example.com", {}, True),
        ("*", "shop-7.example.com", {}, True),
        ("site=hamburg", "shop-7", {"site": "hamburg"}, True),
        ("site=hamburg", "shop-7", {"site": "berlin"}, False),
        ("site=hamburg", "site=hamburg", {}, False),
        ("tier=1,site=hamburg", "shop-7", {"site": "hamburg", "tier": "1"}, True),
        ("tier=1,site=hamburg", "shop-7", {"site": "hamburg"}, False),
    ],
)
def test_nodes(pattern: str, node: str, labels: dict[str, str], matches: bool) -> None:
    assert NodePattern.parse(pattern).matches(node, labels) is matches


@pytest.mark.parametrize(
    ("pattern", "target", "matches"),
    [
        ("*", "unix:/run/x.sock", True),
        ("ssh", "ssh", True),
        ("ssh", "localhost:22", False),
        ("web-*", "web-shop", True),
        ("web-*", "api", False),
        ("22", "localhost:22", True),
        ("22", "127.0.0.1:22", True),
        ("22", "[::1]:22", True),
        ("22", "10.0.0.5:22", False),
        ("8000-8100", "localhost:8100", True),
        ("8000-8100", "localhost:8101", False),
        ("plc.lan:502", "plc.lan:502", True),
        ("plc.lan:502", "plc.lan:503", False),
        ("*.lan:80", "plc.lan:80", True),
        ("*.lan:80", "a.plc.lan:80", False),
        ("10.0.0.0/8:443", "10.1.2.3:443", True),
        ("10.0.0.0/8:443", "11.1.2.3:443", False),
        ("10.0.0.0/8:443", "ten.lan:443", False),
        ("[2001:db8::/32]:1-1024", "[2001:db8::9]:80", True),
        ("[2001:db8::9]:80", "[2001:db8:0::9]:80", True),
        ("*:443", "plc.lan:443", True),
        ("*:443", "localhost:443", True),
        ("*:*", "plc.lan:1", True),
        ("*:*", "ssh", False),
        ("*:*", "unix:/run/x.sock", False),
        ("unix:/run/x.sock", "unix:/run/x.sock", True),
        ("unix:/run/x.sock", "unix:/run/y.sock", False),
    ],
)
def test_targets(pattern: str, target: str, matches: bool) -> None:
    assert TargetPattern.parse(pattern).matches(Target.parse(target)) is matches


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("localhost:22", "22"),
        ("127.0.0.1:8000-8001", "8000-8001"),
        ("PLC.lan.:502", "plc.lan:502"),
        ("[2001:DB8:0::9]:80", "[2001:db8::9]:80"),
        ("22-22", "22"),
        ("*:*", "*:1-65535"),
    ],
)
def test_each_target_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(TargetPattern.parse(text)) == canonical


@pytest.mark.parametrize(
    "text", ["", "Shop", "a**b", "site=", "=x", "site=a,site=b", "a*b*c*d*e*f", "x,y", "Site=a"]
)
def test_invalid_nodes(text: str) -> None:
    with pytest.raises(GrantError):
        NodePattern.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "65536", "9-8", "a--b", "Web", "unix:x", "http://a", "10.0.0.*:80", "10.0.0.1/8:80"),
        *("2001:db8::/32:443", "[10.0.0.0/8]:80", "[::1%eth0]:80", "a:", "a:0", "a:x", "unix:/run/*\n"),
    ],
)
def test_invalid_targets(text: str) -> None:
    with pytest.raises(GrantError):
        TargetPattern.parse(text)


def test_labels() -> None:
    assert parse_label("example.com/site=Hamburg-1") == ("example.com/site", "Hamburg-1")
    with pytest.raises(GrantError, match="site=hamburg"):
        parse_label("site=ham burg")


@given(st.text(alphabet="ab1-.*:/[]=,unix\n%é", max_size=24))
def test_no_text_raises_anything_but_a_grant_error_and_what_is_parsed_is_canonical(text: str) -> None:
    for kind in (NodePattern, TargetPattern):
        try:
            parsed = kind.parse(text)
        except GrantError:
            continue
        assert kind.parse(str(parsed)) == parsed


@given(st.text("ab.*", min_size=1, max_size=8), st.text("ab.", max_size=8))
def test_a_star_is_the_star_of_join_tokens(pattern: str, name: str) -> None:
    if is_pattern(pattern) and is_node_name(name):
        assert NodePattern.parse(pattern).matches(name, {}) is (pattern == "*" or matches(pattern, name))
