"""Which proxy is used for which server. No password is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_agent.network.proxy import Proxy, ProxyError, choose_proxy, is_exempt, parse_proxy

SERVER = "tunnel.example.com:7001"


def chosen(server: str = SERVER, **environment: str) -> str:
    return str(choose_proxy(server, environment=environment))


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_the_environment_names_the_proxy(name: str) -> None:
    assert chosen(**{name: "http://proxy:3128"}) == "http://proxy:3128"


def test_lower_case_and_https_win() -> None:
    names = {"all_proxy": "c:1", "HTTPS_PROXY": "b:1", "https_proxy": "a:1"}
    assert chosen(**names) == "http://a:1"
    assert chosen(all_proxy="c:1", HTTPS_PROXY="b:1", https_proxy="") == "http://b:1"


def test_http_proxy_alone_means_nothing_for_tls() -> None:
    assert chosen(http_proxy="http://proxy:3128") == "None"


def test_the_file_wins_over_the_environment_and_its_exemptions() -> None:
    environment = {"https_proxy": "http://env:1", "no_proxy": "*"}
    found = choose_proxy(SERVER, proxy="http://file:2", environment=environment)
    assert str(found) == "http://file:2"


def test_exemptions_of_the_file_hold_for_both() -> None:
    environment = {"https_proxy": "http://env:1"}
    assert choose_proxy(SERVER, no_proxy=[".example.com"], environment=environment) is None
    assert choose_proxy(SERVER, proxy="http://p:2", no_proxy=[".example.com"], environment={}) is None


@pytest.mark.parametrize("server", ["localhost:7001", "127.0.0.1:7001", "[::1]:7001"])
def test_loopback_is_reached_directly_unless_the_file_says_otherwise(server: str) -> None:
    assert chosen(server, https_proxy="http://proxy:1") == "None"
    assert str(choose_proxy(server, proxy="proxy:1", environment={})) == "http://proxy:1"


@pytest.mark.parametrize("scheme", ["https", "socks5", "socks5h", "socks4"])
def test_a_proxy_that_would_be_bypassed_is_refused(scheme: str) -> None:
    with pytest.raises(ProxyError, match=rf"the environment's HTTPS_PROXY is a {scheme}:// proxy"):
        chosen(HTTPS_PROXY=f"{scheme}://user:geheim@proxy:3128")


@pytest.mark.parametrize(
    "text", ["http://", "http://proxy/path", "http://proxy:99999", "http://[::1", "http://a b:1"]
)
def test_an_invalid_proxy_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ProxyError, match=r"is not http://host:port$"):
        parse_proxy(text, origin="proxy")


def test_the_password_comes_from_its_file_and_is_percent_encoded_for_the_dial() -> None:
    proxy = parse_proxy("http://al%40ice@proxy:3128", origin="proxy", password="p/w:d")  # noqa: S106
    assert proxy.url == "http://al%40ice:p%2Fw%3Ad@proxy:3128"


def test_a_password_is_never_printed() -> None:
    proxy = Proxy("proxy", 3128, "alice", "geheim")
    assert "geheim" not in f"{proxy} {proxy!r}"


def test_ports_and_ipv6() -> None:
    assert parse_proxy("proxy", origin="").address == "proxy:80"
    assert parse_proxy("http://[2001:db8::1]:8080/", origin="").address == "[2001:db8::1]:8080"


@pytest.mark.parametrize(
    ("rule", "host", "covered"),
    [
        ("*", "a.example.com", True),
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", True),
        ("example.com", "badexample.com", False),
        (".example.com", "a.example.com", True),
        (".example.com", "example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "example.com", False),
        ("EXAMPLE.com:7001", "example.com", True),
        ("example.com:443", "example.com", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:7001", "10.1.2.3", True),
        ("2001:db8::/32", "2001:db8::7", True),
        ("[2001:db8::7]:7001", "2001:db8::7", True),
        ("[2001:db8::7]:443", "2001:db8::7", False),
        ("10.0.0.0/8", "example.com", False),
        ("", "example.com", False),
        (".", "example.com", False),
        ("example.com:x", "example.com", False),
    ],
)
def test_exemptions(rule: str, host: str, covered: bool) -> None:
    assert is_exempt(host, 7001, [rule]) is covered


@given(st.text(max_size=40), st.sampled_from(["example.com", "10.0.0.1", "2001:db8::1"]))
def test_any_rule_and_any_proxy_text_is_answered(text: str, host: str) -> None:
    is_exempt(host, 443, [text])
    try:
        parse_proxy(text, origin="proxy")
    except ProxyError as error:
        assert str(error).startswith("proxy is ")
