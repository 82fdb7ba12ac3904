"""The names of a service in requests and answers. The cases come from programs as they are installed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.wire.frames import Service
from tunnel_server.reverse_proxy.hosts import Hosts, Origin, origin_of

PUBLIC = Origin(b"https", b"red--edge1.example.com:8443")
HOSTS = Hosts(PUBLIC, Origin(b"http", b"localhost:8080"))
COCKPIT = Hosts(PUBLIC, Origin(b"https", b"192.168.7.2:9090"))
KEPT = Hosts(PUBLIC)
OURS = b"https://red--edge1.example.com:8443"


@pytest.mark.parametrize(
    ("protocol", "target", "origin"),
    [
        ("http", "localhost:8080", b"http://localhost:8080"),
        ("http", "localhost:80", b"http://localhost"),
        ("https", "192.168.7.2:443", b"https://192.168.7.2"),
        ("https", "[2001:db8::1]:8443", b"https://[2001:db8::1]:8443"),
        ("http", "unix:/run/app.sock", b"http://localhost"),
        ("http", "", None),
        ("http", "not a target", None),
    ],
)
def test_the_address_of_a_service_as_its_program_knows_it(
    protocol: str, target: str, origin: bytes | None
) -> None:
    found = origin_of(Service("red", protocol, target))
    assert (bytes(found) if found else None) == origin


@pytest.mark.parametrize(
    ("hosts", "name", "value", "forwarded"),
    [
        (HOSTS, b"Origin", OURS, b"http://localhost:8080"),
        (HOSTS, b"origin", b"http://Red--Edge1.example.com:8443", b"http://localhost:8080"),
        (HOSTS, b"Origin", b"null", b"null"),
        (HOSTS, b"Referer", OURS + b"/lab/tree?a=//b", b"http://localhost:8080/lab/tree?a=//b"),
        (HOSTS, b"Referer", b"https://elsewhere.example/", b"https://elsewhere.example/"),
        (HOSTS, b"Referer", b"https://red--edge1.example.com.evil/", b"https://red--edge1.example.com.evil/"),
        (HOSTS, b"Origin", b"https://red--edge1.example.com", b"http://localhost:8080"),  # behind a proxy
        (COCKPIT, b"Origin", OURS, b"https://192.168.7.2:9090"),
        (HOSTS, b"X-Link", OURS, OURS),
        (KEPT, b"Origin", OURS, OURS),
    ],
)
def test_requests_name_the_target(hosts: Hosts, name: bytes, value: bytes, forwarded: bytes) -> None:
    assert hosts.forward([(name, value)]) == [(name, forwarded)]


def test_the_host_for_the_target() -> None:
    assert (HOSTS.host, KEPT.host) == (b"localhost:8080", PUBLIC.authority)


@pytest.mark.parametrize(
    ("hosts", "name", "value", "back"),
    [
        # nginx adds the slash of a folder: with its own address, in a container, and with the virtual host.
        (HOSTS, b"Location", b"http://localhost:8080/dir/", OURS + b"/dir/"),
        (HOSTS, b"Location", b"http://localhost/dir/", OURS + b"/dir/"),
        (HOSTS, b"Location", b"http://red--edge1.example.com:8080/dir/", OURS + b"/dir/"),
        (KEPT, b"Location", b"http://red--edge1.example.com:8080/dir/", OURS + b"/dir/"),
        # A program behind TLS in its own opinion.
        (
            HOSTS,
            b"Location",
            b"https://localhost:8080/?next=http://localhost:8080/",
            OURS + b"/?next=http://localhost:8080/",
        ),
        (COCKPIT, b"Location", b"https://192.168.7.2:9090", OURS),
        (HOSTS, b"location", b"//LOCALHOST:8080/x", b"//red--edge1.example.com:8443/x"),
        # JupyterLab.
        (HOSTS, b"Location", b"/lab?token=x", b"/lab?token=x"),
        (HOSTS, b"Content-Location", b"http://localhost:8080/a", OURS + b"/a"),
        # Another program of the node, another site, and what is no address.
        (HOSTS, b"Location", b"http://localhost:9090/", b"http://localhost:9090/"),
        (HOSTS, b"Location", b"http://localhost.example:8080/", b"http://localhost.example:8080/"),
        (HOSTS, b"Location", b"http://localhost:8080@evil.example/", b"http://localhost:8080@evil.example/"),
        (HOSTS, b"Location", b"http://evil.example/localhost:8080", b"http://evil.example/localhost:8080"),
        (
            HOSTS,
            b"Location",
            b"javascript://localhost:8080/%0aalert(1)",
            b"javascript://localhost:8080/%0aalert(1)",
        ),
        (KEPT, b"Location", b"http://localhost:8080/", b"http://localhost:8080/"),
        (HOSTS, b"Access-Control-Allow-Origin", b"http://localhost:8080", OURS),
        (HOSTS, b"Access-Control-Allow-Origin", b"*", b"*"),
        (HOSTS, b"Refresh", b"5; url=http://localhost:8080/a", b"5; url=" + OURS + b"/a"),
        (HOSTS, b"Refresh", b"0;URL='http://localhost:8080/a'", b"0;URL='" + OURS + b"/a'"),
        (HOSTS, b"Refresh", b"5", b"5"),
        (
            COCKPIT,  # as Cockpit sends it
            b"Content-Security-Policy",
            b"connect-src 'self' https://192.168.7.2:9090 wss://192.168.7.2:9090; default-src 'self' https://192.168.7.2:9090",
            b"connect-src 'self' " + OURS + b" wss://red--edge1.example.com:8443; default-src 'self' " + OURS,
        ),
        (
            HOSTS,
            b"Content-Security-Policy-Report-Only",
            b"script-src localhost:8080 ws://localhost:8080/s https: *.example.org data: 'x'; report-uri /c",
            b"script-src red--edge1.example.com:8443 wss://red--edge1.example.com:8443/s https:"
            b" *.example.org data: 'x'; report-uri /c",
        ),
        (HOSTS, b"X-Link", b"http://localhost:8080/", b"http://localhost:8080/"),
    ],
)
def test_answers_name_the_virtual_host(hosts: Hosts, name: bytes, value: bytes, back: bytes) -> None:
    assert hosts.back([(name, value)]) == [(name, back)]


@given(
    st.sampled_from([b"Location", b"Refresh", b"Content-Security-Policy", b"Origin", b"Referer"]),
    st.binary(max_size=40),
)
def test_no_value_makes_a_header_that_ends_early(name: bytes, value: bytes) -> None:
    for changed in (HOSTS.back([(name, value)]), HOSTS.forward([(name, value)])):
        assert changed[0][1].count(b"\n") == value.count(b"\n")
        assert changed[0][1].count(b"\r") == value.count(b"\r")
