"""Routing of CONNECT authorities and web hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.routing import NodeRoute, WebHost, route_authority, route_web_host, target_header


class Names:
    """A directory of a few names."""

    def __init__(self, *names: str, ambiguous: str = "") -> None:
        self.names = names
        self.ambiguous = ambiguous

    def name_of(self, text: str) -> str | None:
        if text == self.ambiguous:
            raise Refused(Reason.AMBIGUOUS_NAME, f"{text} means two nodes")
        return text if text in self.names else None

    def nearest(self, text: str) -> str | None:
        return next((name for name in self.names if name[:3] == text[:3]), None)


NAMES = Names("edge1", "site.edge1", "edge.example.com", ambiguous="both")


def test_a_node_and_a_port_mean_the_node_itself() -> None:
    assert route_authority("edge1:10250", NAMES) == NodeRoute("edge1", Target(host="localhost", port=10250))


def test_case_and_a_final_dot_do_not_matter() -> None:
    assert route_authority("EDGE1.:10250", NAMES).node == "edge1"


def test_a_service_before_a_node() -> None:
    assert route_authority("web.edge.example.com:1", NAMES) == NodeRoute(
        "edge.example.com", Target(service="web")
    )


@pytest.mark.parametrize("name", ["42", "shop.7", "1.2.3"])
def test_a_node_may_be_called_by_a_number(name: str) -> None:
    assert route_authority(f"{name}:22", Names(name)) == NodeRoute(name, Target(host="localhost", port=22))


def test_the_longest_node_name_wins() -> None:
    assert route_authority("site.edge1:80", NAMES) == NodeRoute(
        "site.edge1", Target(host="localhost", port=80)
    )
    assert route_authority("web.site.edge1:80", NAMES) == NodeRoute("site.edge1", Target(service="web"))


@pytest.mark.parametrize(
    "target", ["web", "10.1.2.3:80", "[fd00::1]:22", "unix:/run/x.sock", "unix:/b\u00fccher", "db.local:5432"]
)
def test_the_target_header_overrides_the_target(target: str) -> None:
    assert route_authority("edge1:1", NAMES, target) == NodeRoute("edge1", Target.parse(target))


@pytest.mark.parametrize(
    ("authority", "reason", "says"),
    [
        ("edge1", Reason.BAD_REQUEST, "port"),
        ("edge1:0", Reason.BAD_REQUEST, "port"),
        ("edge1:080", Reason.BAD_REQUEST, "port"),
        ("user@edge1:80", Reason.BAD_REQUEST, "host name"),
        ("fd00::1:80", Reason.BAD_REQUEST, "brackets"),
        ("a--b.edge1:80", Reason.BAD_REQUEST, "service name"),
        ("edge2:80", Reason.UNKNOWN_NODE, "no node edge2 is known here; nearest: edge1"),
        ("a.b.edge1:80", Reason.UNKNOWN_NODE, "no node a.b.edge1"),
        ("192.168.1.10:10250", Reason.UNKNOWN_NODE, "preferred-address-types"),
        ("[fd00::1]:10250", Reason.UNKNOWN_NODE, "address fd00::1 names no node"),
        ("both:80", Reason.AMBIGUOUS_NAME, "two nodes"),
        ("web.both:80", Reason.AMBIGUOUS_NAME, "two nodes"),
    ],
)
def test_refusals_name_the_fault(authority: str, reason: Reason, says: str) -> None:
    with pytest.raises(Refused) as caught:
        route_authority(authority, NAMES)
    assert caught.value.reason is reason
    assert says in caught.value.detail


def test_a_target_header_leaves_no_room_for_a_service() -> None:
    with pytest.raises(Refused) as caught:
        route_authority("web.edge1:1", NAMES, "localhost:22")
    assert caught.value.reason is Reason.UNKNOWN_NODE


def test_a_bad_target_header_is_named() -> None:
    with pytest.raises(Refused) as caught:
        route_authority("edge1:1", NAMES, "not a target")
    assert caught.value.reason is Reason.BAD_REQUEST
    assert "Qanat-Target" in caught.value.detail


def test_a_target_header_is_utf_8() -> None:
    assert (
        target_header([(b"qanat-target", "unix:/tmp/b\u00fccher.sock".encode())])
        == "unix:/tmp/b\u00fccher.sock"
    )
    with pytest.raises(Refused, match="not UTF-8") as caught:
        target_header([(b"qanat-target", "unix:/tmp/b\u00fccher.sock".encode("latin-1"))])
    assert caught.value.reason is Reason.BAD_REQUEST


def test_one_target_header_is_read_and_two_are_refused() -> None:
    assert target_header([(b"host", b"x")]) is None
    assert target_header([(b"qanat-target", b"web")]) == "web"
    with pytest.raises(Refused):
        target_header([(b"qanat-target", b"web"), (b"qanat-target", b"ssh")])


@given(st.text(max_size=60))
def test_any_authority_is_routed_or_refused(authority: str) -> None:
    try:
        route_authority(authority, NAMES)
    except Refused as refused:
        assert refused.reason in {Reason.BAD_REQUEST, Reason.UNKNOWN_NODE, Reason.AMBIGUOUS_NAME}


@pytest.mark.parametrize(
    "host", ["localhost:7003", "localhost", "qanat.example.com", "127.0.0.1:7003", "[::1]:7003", "[::1]"]
)
def test_the_bare_domain_is_the_index(host: str) -> None:
    assert route_web_host(host, "qanat.example.com") == WebHost()


@pytest.mark.parametrize(
    "host", ["red--edge1.localhost:7003", "RED--edge1.LOCALHOST", "red--edge1.qanat.example.com"]
)
def test_a_virtual_host_names_service_and_node(host: str) -> None:
    assert route_web_host(host, "qanat.example.com") == WebHost("red", "edge1")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("evil.example.net", Reason.NOT_FOUND),
        ("10.0.0.1:80", Reason.NOT_FOUND),
        ("red.localhost", Reason.NOT_FOUND),
        ("a--b--c.localhost", Reason.NOT_FOUND),
        ("a.red--edge1.localhost", Reason.NOT_FOUND),
        ("--edge1.localhost", Reason.BAD_REQUEST),
        ("red--.localhost", Reason.BAD_REQUEST),
        ("", Reason.BAD_REQUEST),
        ("local host", Reason.BAD_REQUEST),
        ("localhost:99999", Reason.BAD_REQUEST),
    ],
)
def test_other_hosts_are_refused(host: str, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        route_web_host(host, "qanat.example.com")
    assert caught.value.reason is reason


@given(st.text(max_size=60))
def test_any_host_is_routed_or_refused(host: str) -> None:
    try:
        route_web_host(host, "localhost")
    except Refused as refused:
        assert refused.reason in {Reason.BAD_REQUEST, Reason.NOT_FOUND}
