"""The section ``[web]``: what an operator may combine."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from tunnel_core.config.types import Count, DnsName, InvalidValueError, ListenAddress
from tunnel_server.web_config import Web, WebCertificate, WebLogin

PAIR = WebCertificate(certificate_file=Path("a.pem"), key_file=Path("a.key"))
PUBLIC = (ListenAddress("0.0.0.0", 443),)
DOMAIN = DnsName("edge.example")
PROXIES = (ipaddress.ip_network("127.0.0.1"),)


def test_by_default_the_listener_is_plain_and_serves_this_machine() -> None:
    web = Web()
    assert not web.is_tls
    assert web.login is WebLogin.NONE
    assert all(address.is_loopback for address in web.listen)


def test_beyond_loopback_with_tls_and_user_certificates() -> None:
    web = Web(listen=PUBLIC, login=WebLogin.CERTIFICATE, certificate=(PAIR,), domain=DOMAIN)
    assert web.is_tls
    assert list(web.files) == [PAIR.certificate_file, PAIR.key_file]
    assert Web(listen=PUBLIC, login=WebLogin.CERTIFICATE, own_certificate=True, domain=DOMAIN).is_tls


def test_a_proxy_that_authenticates_people_is_named() -> None:
    web = Web(login=WebLogin.PROXY, trusted_proxies=PROXIES)
    assert all(address.is_loopback for address in web.listen)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"listen": PUBLIC}, 'login is "none"'),
        ({"listen": PUBLIC, "certificate": (PAIR,)}, 'login is "none"'),
        ({"listen": PUBLIC, "login": WebLogin.CERTIFICATE}, "needs TLS"),
        ({"login": WebLogin.CERTIFICATE}, "needs TLS"),
        ({"login": WebLogin.PROXY}, '"proxy" needs a proxy'),
        ({"listen": PUBLIC, "login": WebLogin.PROXY, "trusted_proxies": PROXIES}, 'login is "proxy"'),
        ({"own_certificate": True}, "the domain has no dot"),
        ({"head_bytes": Count(1000)}, "out of range"),
        ({"head_bytes": Count(2**21)}, "out of range"),
    ],
)
def test_refused_combinations(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidValueError, match=says):
        Web(**changes)
