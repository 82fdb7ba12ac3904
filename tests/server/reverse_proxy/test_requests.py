"""Requests to targets as bytes."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.requests import TargetRequest, encode_end, encode_head, encode_piece

HOST = (b"Host", b"a")


@pytest.mark.parametrize("target", [b"/a//b/%2F?B=1&a=2&&", b"/%2e%2E/", b"/?", b"/%c3%A9", b"*"])
def test_the_target_stays_as_it_is_to_the_byte(target: bytes) -> None:
    request = TargetRequest(b"GET", target, [HOST, (b"x-Y", b"Z")])
    assert encode_head(request) == b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nx-Y: Z\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        TargetRequest(b"GET /x HTTP/1.1\r\n", b"/", []),
        TargetRequest(b"", b"/", []),
        TargetRequest(b"GET", b"/ HTTP/1.1\r\nX: y", []),
        TargetRequest(b"GET", b"/a b", []),
        TargetRequest(b"GET", b"", []),
        TargetRequest(b"GET", b"/\xc3\xa9", []),
        TargetRequest(b"GET", b"/", [(b"a b", b"")]),
        TargetRequest(b"GET", b"/", [(b"", b"")]),
        TargetRequest(b"GET", b"/", [(b"a:", b"")]),
        TargetRequest(b"GET", b"/", [(b"a", b"b\r\nTransfer-Encoding: chunked")]),
        TargetRequest(b"GET", b"/", [(b"a", b"b\nc")]),
        TargetRequest(b"GET", b"/", [(b"a", b"b\0")]),
    ],
)
def test_what_ends_a_line_early_is_refused(request_: TargetRequest) -> None:
    with pytest.raises(Refused) as caught:
        encode_head(request_)
    assert caught.value.reason is Reason.BAD_REQUEST


def test_trailers_are_checked_too() -> None:
    with pytest.raises(Refused):
        encode_end([(b"a", b"b\r\n\r\nGET / HTTP/1.1")], is_chunked=True)


@given(
    st.binary(min_size=1, max_size=6),
    st.binary(min_size=1, max_size=12),
    st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=12)), max_size=4),
    st.lists(st.binary(min_size=1, max_size=40), max_size=4),
    st.lists(st.tuples(st.binary(min_size=1, max_size=4), st.binary(max_size=6)), max_size=2),
)
def test_a_target_reads_one_request_or_the_browser_is_refused(
    method: bytes,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
    pieces: list[bytes],
    trailers: list[tuple[bytes, bytes]],
) -> None:
    kept = [(b"x-" + name, value) for name, value in headers]
    request = TargetRequest(
        method, target, [HOST, *kept, (b"Transfer-Encoding", b"chunked")], is_chunked=True
    )
    try:
        sent = encode_head(request) + b"".join(encode_piece(piece, is_chunked=True) for piece in pieces)
        sent += encode_end([(b"x-" + name, value) for name, value in trailers], is_chunked=True)
    except Refused:
        return
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(sent + b"GET /next HTTP/1.1\r\n")
    head = reader.next_event()
    assert isinstance(head, h11.Request)
    assert (head.method, head.target) == (method, target)
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == b"".join(pieces)
    assert reader.trailing_data[0] == b"GET /next HTTP/1.1\r\n"


def test_a_body_of_known_length_goes_on_as_it_is() -> None:
    assert encode_piece(b"abc", is_chunked=False) == b"abc"
    assert encode_end([(b"a", b"b")], is_chunked=False) == b""
