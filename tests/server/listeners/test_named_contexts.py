"""Choice of a certificate by the name that the client asks for."""

from __future__ import annotations

import ssl

import pytest

from tunnel_server.listeners.named_contexts import NamedContext, NamedContexts


def context(*names: str) -> NamedContext:
    made = NamedContext(ssl.PROTOCOL_TLS_SERVER)
    made.names = names
    return made


DEFAULT, WILD, EXACT = context("first.example"), context("*.example", "example"), context("red.example")
CONTEXTS = NamedContexts([DEFAULT, WILD, EXACT])


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("first.example", DEFAULT),
        ("red.example", EXACT),  # an exact name precedes a wildcard
        ("blue.example", WILD),
        ("example", WILD),
        ("a.red.example", None),  # a wildcard stands for one label
        ("127.0.0.1", None),
        ("", None),
    ],
)
def test_a_host_finds_its_certificate(host: str, found: NamedContext | None) -> None:
    assert CONTEXTS.find(host) is found


def test_a_connection_carries_the_hosts_of_its_certificate_only() -> None:
    assert CONTEXTS.is_misdirected(DEFAULT, "blue.example")
    assert not CONTEXTS.is_misdirected(WILD, "blue.example")
    assert not CONTEXTS.is_misdirected(WILD, "red.example")  # a browser may reuse it for any covered host
    assert not CONTEXTS.is_misdirected(DEFAULT, "127.0.0.1")  # no certificate names it
    assert CONTEXTS.is_misdirected(EXACT, "first.example")


def test_replaced_contexts_serve_the_next_handshake() -> None:
    contexts = NamedContexts([context("a.example")])
    new = context("b.example")
    contexts.use([new])
    assert contexts.current is new
    assert contexts.find("a.example") is None
