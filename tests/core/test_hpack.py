"""Header blocks: the RFC's own examples, what gRPC's clients send, and what is no block."""

from __future__ import annotations

import pytest

from tunnel_core.hpack import HeaderBlockError, decode_block, encode_block

EXAMPLES = [
    # RFC 7541, C.2.1 to C.2.4, C.3.1, C.4.1, C.6.1
    ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [("custom-key", "custom-header")]),
    ("040c2f73616d706c652f70617468", [(":path", "/sample/path")]),
    ("100870617373776f726406736563726574", [("password", "secret")]),
    ("82", [(":method", "GET")]),
    (
        "828684410f7777772e6578616d706c652e636f6d",
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
    ),
    (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
    ),
    (
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff"
        "6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        [
            (":status", "302"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("location", "https://www.example.com"),
        ],
    ),
]


@pytest.mark.parametrize(("block", "headers"), EXAMPLES, ids=[str(n) for n in range(len(EXAMPLES))])
def test_the_examples_of_the_rfc(block: str, headers: list[tuple[str, str]]) -> None:
    assert decode_block(bytes.fromhex(block)) == [(name.encode(), value.encode()) for name, value in headers]


def test_an_entry_of_the_dynamic_table_is_found_until_it_is_dropped() -> None:
    kept = bytes.fromhex("4001610162")
    assert decode_block(kept + b"\xbe") == [(b"a", b"b")] * 2
    assert decode_block(kept + bytes.fromhex("4001630164") + b"\xbf\xbe")[2:] == [(b"a", b"b"), (b"c", b"d")]
    with pytest.raises(HeaderBlockError):
        decode_block(kept + b"\x20\xbe")  # a table of no size


def test_the_dynamic_table_never_grows_beyond_its_size() -> None:
    block = b"\x40\x01a\x7f\x81\x0f" + bytes(2048)
    with pytest.raises(HeaderBlockError):
        decode_block(block * 2 + b"\xbf")
    assert len(decode_block(block * 2 + b"\xbe")) == 3


def test_what_is_encoded_is_decoded() -> None:
    headers = [(b":status", b"200"), (b"grpc-message", b"Method not found!"), (b"x", b"")]
    assert decode_block(encode_block(headers)) == headers


@pytest.mark.parametrize(
    "block",
    [
        *("80", "ff00", "ffffffffffff", "be", "00", "0003616263", "000161", "3fe21f", "0001ff"),
        *("000182ffff", "00018418", "000185ffffffffff"),
    ],
)
def test_what_is_no_block(block: str) -> None:
    with pytest.raises(HeaderBlockError):
        decode_block(bytes.fromhex(block))
