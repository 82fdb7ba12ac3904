"""Heads of HTTP/2 that become heads of HTTP/1.1: nothing passes that HTTP/1.1 could read in another way."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.reasons import Reason, Refused
from tunnel_server.entrances.web.http2_heads import (
    MalformedHead,
    checked_fields,
    fields_of,
    request_of,
    trailers_of,
)
from tunnel_server.reverse_proxy.messages import AnswerHead, BrowserRequest

HOST = b"red--edge1.localhost"
NAMES = st.sampled_from([b":method", b":path", b":scheme", b":authority", b":protocol", b"host", b"te", b"x"])
HEAD = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", HOST), (b":path", b"/a?b")]


def request(
    *more: tuple[bytes, bytes], head: list[tuple[bytes, bytes]] = HEAD, is_end: bool = True
) -> BrowserRequest:
    return request_of(
        [*head, *more], is_end=is_end, scheme=b"https", source="192.0.2.1", max_head_bytes=1000, max_headers=9
    )


def test_a_request() -> None:
    found = request((b"accept", b"*/*"), (b"te", b"trailers"), (b"expect", b"100-Continue"))
    assert (found.method, found.target, found.authority) == (b"GET", b"/a?b", HOST)
    assert (found.scheme, found.source, found.upgrade, found.has_body) == (b"https", "192.0.2.1", b"", False)
    assert found.expects_continue
    assert request(head=[*HEAD[:2], HEAD[3]]).authority == b""
    assert request((b"host", HOST)).authority == HOST


def test_the_length_of_the_body() -> None:
    assert request(is_end=False).body_length is None
    assert request((b"content-length", b"5"), is_end=False).body_length == 5
    assert request((b"content-length", b"0")).body_length == 0
    for value in (b"-1", b"+5", b"5, 5", b"0x5", b"5" * 20, b""):
        with pytest.raises(MalformedHead):
            request((b"content-length", value), is_end=False)
    with pytest.raises(MalformedHead):
        request((b"content-length", b"5"))


def test_cookies_are_joined() -> None:
    found = request((b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"))
    assert found.headers == [(b"x", b"y"), (b"cookie", b"a=1; b=2")]


def test_an_extended_connect_is_a_get_with_an_upgrade() -> None:
    head = [(b":method", b"CONNECT"), *HEAD[1:], (b":protocol", b"websocket")]
    found = request(head=head, is_end=False)
    assert (found.method, found.upgrade, found.has_body) == (b"GET", b"websocket", False)
    with pytest.raises(MalformedHead):
        request(head=[*head[:-1], (b":protocol", b"web socket")])
    for more in ((b"content-length", b"5"), (b"content-length", b"0"), (b"transfer-encoding", b"chunked")):
        with pytest.raises(MalformedHead):
            request(more, head=head, is_end=False)


@pytest.mark.parametrize("more", [[(b"a", b"b" * 1000)], [(b"a", b"")] * 10])
def test_a_large_head_is_refused(more: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Refused) as caught:
        request(*more)
    assert caught.value.reason is Reason.HEAD_TOO_LARGE


@given(st.lists(st.tuples(NAMES | st.binary(max_size=8), st.binary(max_size=12)), max_size=8))
def test_what_passes_is_a_valid_head_of_http1(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        found = request(*fields)
    except (MalformedHead, Refused):
        return
    # h11 refuses what is no valid HTTP/1.1, and what it writes has one line for each header.
    sent = h11.Connection(h11.CLIENT).send(
        h11.Request(method=found.method, target=found.target, headers=[(b"Host", b"x"), *found.headers])
    )
    assert sent is not None
    assert sent.count(b"\n") == len(found.headers) + 3 - any(name == b"host" for name, _ in found.headers)


def test_answers_lose_what_http2_does_not_permit() -> None:
    head = AnswerHead(
        200,
        [
            (b"X-Name", b" a "),
            (b"Connection", b"close"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Keep-Alive", b"1"),
            (b"Set-Cookie", b"a=b"),
            (b"bad name", b"x"),
            (b"x-line", b"a\r\nb"),
        ],
    )
    assert fields_of(head) == [(b":status", b"200"), (b"x-name", b"a"), (b"set-cookie", b"a=b")]
    assert checked_fields([(b":status", b"200")]) == []


def test_trailers() -> None:
    assert trailers_of([(b"x-sum", b"1")]) == [(b"x-sum", b"1")]
    for wrong in ((b":path", b"/"), (b"X", b"y"), (b"x", b"a\nb"), (b"transfer-encoding", b"chunked")):
        with pytest.raises(MalformedHead):
            trailers_of([wrong])
