"""What a reverse proxy in front may say about the browser, and who is believed."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes.edge import TRUST_DOMAIN, answer_with, open_edge, receive_until
from tunnel_core.config.types import ServiceName
from tunnel_core.reasons import Refused
from tunnel_server.entrances.web.login import ProxyLogin
from tunnel_server.entrances.web.proxies import TrustedProxies
from tunnel_server.reverse_proxy.messages import BrowserRequest
from tunnel_server.web_config import WebService

PROXIES = TrustedProxies([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("127.0.0.1")])


def request(*headers: tuple[bytes, bytes]) -> BrowserRequest:
    return BrowserRequest(
        method=b"GET",
        scheme=b"http",
        authority=b"red--edge1.localhost",
        target=b"/",
        headers=list(headers),
        source="10.0.0.1",
    )


def test_a_proxy_that_is_not_listed_is_not_believed() -> None:
    forged = request((b"X-Forwarded-For", b"1.2.3.4"), (b"X-Forwarded-Proto", b"https"))
    assert PROXIES.apply(forged, "192.0.2.7") is forged
    assert TrustedProxies(()).apply(forged, "127.0.0.1") is forged


@pytest.mark.parametrize(
    ("lines", "source"),
    [
        ([b"1.2.3.4"], "1.2.3.4"),
        ([b"6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # the browser wrote the first one
        ([b"6.6.6.6", b"1.2.3.4, 10.9.9.9"], "1.2.3.4"),  # two trusted proxies
        ([b"10.1.1.1"], "10.1.1.1"),  # a browser behind the proxy's own network
        ([b"[2001:db8::1]:443"], "2001:db8::1"),
        ([b"2001:DB8::1"], "2001:db8::1"),
        ([b"1.2.3.4:5678"], "1.2.3.4"),
        ([], "10.0.0.1"),
    ],
)
def test_the_source_is_the_newest_address_of_a_stranger(lines: list[bytes], source: str) -> None:
    asked = request(*[(b"X-Forwarded-For", line) for line in lines])
    assert PROXIES.apply(asked, "10.0.0.1").source == source


def test_the_scheme_of_the_browser_and_no_other_host() -> None:
    asked = request((b"X-Forwarded-Proto", b"https"), (b"x-forwarded-host", b"blue--edge1.localhost"))
    found = PROXIES.apply(asked, "10.0.0.1")
    assert (found.scheme, found.authority, found.is_proxied) == (b"https", b"red--edge1.localhost", True)
    assert not asked.is_proxied
    assert PROXIES.apply(request((b"X-Forwarded-Proto", b"http, wss")), "10.0.0.1").scheme == b"https"


@pytest.mark.parametrize(
    "header",
    [(b"X-Forwarded-For", b"unknown"), (b"X-Forwarded-For", b"\xff"), (b"X-Forwarded-Proto", b"gopher")],
)
def test_a_header_without_meaning_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(Refused, match="malformed X-Forwarded"):
        PROXIES.apply(request(header), "10.0.0.1")


@given(
    st.lists(st.tuples(st.sampled_from([b"X-Forwarded-For", b"X-Forwarded-Host"]), st.binary(max_size=40)))
)
def test_any_header_gives_a_request_or_a_refusal(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        found = PROXIES.apply(request(*headers), "10.0.0.1")
    except Refused:
        return
    ipaddress.ip_address(found.source)


async def test_the_target_learns_what_the_proxy_said() -> None:
    async with open_edge() as edge:
        seen: list[bytes] = []
        edge.attach("edge1", answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", seen=seen))
        proxies = TrustedProxies([ipaddress.ip_network("127.0.0.0/8")])
        services = [WebService(name=ServiceName("red"), forwarded=True)]
        login = ProxyLogin(TRUST_DOMAIN)
        web = edge.web("edge.example", login=login, proxies=proxies, services=services)
        browser = await edge.dial(await edge.listen("web", web.serve))
        await browser.send_all(
            b"GET / HTTP/1.1\r\nHost: Red--Edge1.edge.example\r\n"
            b"X-Forwarded-Host: blue--edge1.edge.example\r\n"
            b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n"
        )
        await receive_until(browser, b"hi")
        assert b"X-Forwarded-For: 1.2.3.4\r\n" in seen[0]
        assert b"X-Forwarded-Proto: https\r\n" in seen[0]
        assert b"X-Forwarded-Host: red--edge1.edge.example\r\n" in seen[0]
