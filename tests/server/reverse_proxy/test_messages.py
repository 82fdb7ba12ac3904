"""Heads of requests at the seam between browsers and targets."""

from __future__ import annotations

import pytest

from tunnel_server.reverse_proxy.messages import BrowserRequest


@pytest.mark.parametrize(("length", "has_body"), [(0, False), (7, True), (None, True)])
def test_a_request_in_the_words_of_http2(length: int | None, has_body: bool) -> None:
    request = BrowserRequest(
        method=b"POST",
        scheme=b"https",
        authority=b"red--edge1.example:8443",
        target=b"/",
        headers=[(b"Accept", b"a"), (b"x-b", b"b"), (b"accept", b"c")],
        body_length=length,
        source="192.0.2.1",
    )
    assert request.has_body is has_body
    assert request.host == "red--edge1.example:8443"
    assert request.values(b"accept") == [b"a", b"c"]
    assert not request.upgrade and not request.expects_continue
