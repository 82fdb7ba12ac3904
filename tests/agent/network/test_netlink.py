"""Messages of rtnetlink: as a kernel wrote them, and as nobody should."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel_agent.network.netlink import Answer, KernelRoute, read_answers, route_request

# Recorded on x86-64 from the answers to RTM_GETROUTE.
little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the records are little-endian")
LOOPBACK = bytes.fromhex(
    "680000001800000007000000f026000002200000fe0000020002008008000f00fe000000080001007f000001080004000100"
    "0000080007007f000001080019000000000024000c000e0000003d8300000000000000000000000000000000000000000000"
    "00000000"
)
THROUGH_IPV6_GATEWAY = bytes.fromhex(
    "b00000001800000009000000f02600000a808000fe0300010000000008000f00fe0000001400010020010db8000000000000"
    "000000000001140002000000000000000000000000000000000000000014000700fd0000000000000000000000000000020800"
    "06000004000014000500fd000000000000000000000000000001080004000400000024000c0002000000ca3a0100000000000000"
    "0000000000000000000000000000000000000500140000000000"
)


def message(kind: int, body: bytes, sequence: int = 7) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def route(*attributes: bytes, kind: int = 1) -> bytes:
    return message(24, struct.pack("=8BI", 2, 32, 0, 0, 0, 0, 0, kind, 0) + b"".join(attributes))


OUT = attribute(4, struct.pack("=I", 3))


def answers(data: bytes) -> list[Answer]:
    return list(read_answers(data))


@little_endian
def test_recorded_answers_are_read() -> None:
    assert answers(LOOPBACK) == [Answer(7, KernelRoute(1, "127.0.0.1", ""))]


@little_endian
def test_a_question_is_what_the_kernel_takes() -> None:
    assert route_request("192.0.2.1", 5).hex() == (
        "240000001a000100050000000000000002200000000000000000000008000100c0000201"
    )


@pytest.mark.parametrize("same", ["::ffff:192.0.2.1", "192.0.2.1"])
def test_an_ipv4_address_in_ipv6_clothes_is_asked_for_as_ipv4(same: str) -> None:
    assert route_request(same, 1) == route_request("192.0.2.1", 1)


def test_the_zone_of_an_address_is_no_part_of_the_question() -> None:
    assert route_request("fe80::1%eth0", 1) == route_request("fe80::1", 1)


def test_names_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match=r"tunnel\.example\.com"):
        route_request("tunnel.example.com", 1)


def test_gateway_and_source_are_read() -> None:
    data = route(OUT, attribute(5, b"\xc0\0\2\1"), attribute(7, b"\xc0\0\2\2"))
    assert answers(data) == [Answer(7, KernelRoute(3, "192.0.2.2", "192.0.2.1"))]


def test_an_ipv6_gateway_of_an_ipv4_route_is_read() -> None:
    via = attribute(18, struct.pack("=H", 10) + bytes(15) + b"\1")
    assert answers(route(OUT, via)) == [Answer(7, KernelRoute(3, "", "::1"))]


@pytest.mark.parametrize("kind", [6, 7, 8])
def test_routes_that_lead_nowhere_are_no_routes(kind: int) -> None:
    assert answers(route(OUT, kind=kind)) == [Answer(7, None)]


def test_an_error_means_that_there_is_no_way() -> None:
    assert answers(message(2, struct.pack("=i", -101) + bytes(16))) == [Answer(7, None)]


def test_other_messages_are_left_out() -> None:
    assert answers(message(16, bytes(40)) + route(OUT)) == [Answer(7, KernelRoute(3, "", ""))]


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    for answer in read_answers(data):
        assert answer.route is None or answer.route.interface >= 0


@given(
    st.lists(st.tuples(st.integers(0, 2**16 - 1), st.binary(max_size=20)), max_size=6), st.binary(max_size=9)
)
@example([(4, b"\1\0\0")], b"")
@example([(5, b"short")], b"\xff\xff\xff\xff")
def test_no_attributes_make_it_fail(attributes: list[tuple[int, bytes]], rest: bytes) -> None:
    [answer] = answers(route(OUT, *(attribute(kind, value) for kind, value in attributes), rest))
    assert answer.sequence == 7


@given(st.data())
def test_what_was_cut_is_left_out(data: st.DataObject) -> None:
    whole = route(OUT, attribute(7, b"\xc0\0\2\2"))
    assert answers(whole[: data.draw(st.integers(0, len(whole) - 1))]) == []
