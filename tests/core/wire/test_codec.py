"""The codec against protobuf's own classes: both write and read the same bytes, and no input raises."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.fakes.packets import (
    KINDS,
    by_protobuf,
    delimited,
    mutated,
    numbers_of,
    odd_packets,
    packets,
    to_protobuf,
)
from tunnel_core.limits import KIB, Limits
from tunnel_core.reasons import Reason
from tunnel_core.wire import frames as frames_module
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import (
    Bye,
    Credit,
    Data,
    DataParts,
    End,
    Frame,
    Hello,
    Malformed,
    Open,
    Packet,
    Ping,
    Rejected,
    Reset,
    Service,
    SessionSecret,
    Stop,
    Unknown,
    Use,
    Welcome,
)
from tunnel_core.wire.pb import tunnel_pb2
from tunnel_core.wire.protobuf import MAX_FIELDS, FieldBudget, varint
from tunnel_core.wire.schema import BY_FRAME, MESSAGES, Fields, read_fields

LIMITS = Limits()
WELCOME = Welcome(1, b"s" * 16, SessionSecret(b"x" * 32), 0, "server", 15_000, 2, 1024, 16 * KIB, 64 * KIB)
relaxed = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def encoded(packet: Packet) -> bytes:
    return encode_packet(*packet)


def read(data: bytes) -> Packet:
    packet = decode_packet(data)
    assert isinstance(packet, Packet), packet
    return packet


def refusal(data: bytes) -> str:
    packet = decode_packet(data)
    assert isinstance(packet, Malformed), packet
    return packet.detail


# Both ways.


@relaxed
@given(packets)
def test_our_bytes_are_protobufs_bytes(packet: Packet) -> None:
    assert encoded(packet) == to_protobuf(packet).SerializeToString(deterministic=True)


@relaxed
@given(packets)
def test_written_packets_read_back(packet: Packet) -> None:
    assert read(encoded(packet)) == packet


@relaxed
@given(odd_packets)
@example(delimited(3, b""))
@example(delimited(3, delimited(1, b"")))
@example(delimited(3, delimited(1, b"\x08\x05") + delimited(1, b"\x10\x07")))
@example(delimited(3, delimited(3, b"\x08\x05")) + b"\x10\x07")
@example(encode_packet(0, 0, [WELCOME, Rejected(Reason.STALE_ATTEMPT, "")]))
def test_the_codec_reads_what_protobuf_reads(data: bytes) -> None:
    expected = by_protobuf(data)
    assert expected is not None
    assert read(data) == expected


# Hostile bytes.


def assert_judged_as_by_protobuf(data: bytes) -> None:
    expected = by_protobuf(data)
    assert decode_packet(data) == expected if expected is not None else refusal(data)


@relaxed
@given(st.binary(max_size=300))
@example(b"\x1a\x02\x0a\x05")
@example(b"\x08" + b"\xff" * 9 + b"\x7f")
@example(b"\x08" + b"\x80" * 10 + b"\x00")
@example(b"\x88\x80\x80\x80\x10\x05")
@example(b"\x53\x00\x01\x54")
@example(b"\x53\x08\x01\x5c")
@example(b"\x00\x05")
@example(b"\x0e\x01")
def test_any_bytes_are_judged_as_by_protobuf(data: bytes) -> None:
    assert_judged_as_by_protobuf(data)


@pytest.mark.parametrize(
    "frames",
    [
        [Use(1), Use(1)],
        [Ping(1), Use(1)],
        [Use(1), Data(1, 0, b"x")],
        [WELCOME, WELCOME],
        [Rejected(Reason.STALE_ATTEMPT, ""), WELCOME],
        [WELCOME, Rejected(Reason.STALE_ATTEMPT, ""), Ping(1)],
    ],
)
def test_a_frame_of_the_attach_stands_alone(frames: list[Frame]) -> None:
    assert refusal(encode_packet(0, 0, frames)) == "a frame of the attach is not alone in its packet"


@pytest.mark.parametrize(
    "kinds", [(1, 2), (2, 1), (2, 2), (16, 16), (1, 1, 16)], ids=lambda kinds: "-".join(map(str, kinds))
)
def test_a_frame_holds_one_kind_and_data_alone_comes_in_pieces(kinds: tuple[int, ...]) -> None:
    body = b"".join(delimited(kind, b"\x08\x05") for kind in kinds)
    assert by_protobuf(delimited(3, body)) is None
    assert refusal(delimited(3, body)) == "a frame holds more than one kind"


@relaxed
@given(mutated())
def test_mutated_packets_are_judged_as_by_protobuf(data: bytes) -> None:
    assert_judged_as_by_protobuf(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x08", "truncated"),
        (b"\x1a\x05\x0a", "truncated"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "a varint is longer than ten bytes"),
        (b"\x88\x80\x80\x80\x80\x01\x05", "a tag is too large"),
        (b"\x1a\x80\x80\x80\x80\x08", "a length is too large"),
        (b"\x02\x00", "a field has number 0"),
        (b"\x0a\x01x", "field 1 has wire type 2"),
        (delimited(3, b"\x08\x05"), "frame kind 1 has wire type 0"),
        (delimited(3, delimited(1, b"\x1a\x01x\x0a\x00")), "field 1 has wire type 2"),
        (delimited(3, delimited(2, b"\x0a\x00")), "field 1 has wire type 2"),
        (delimited(3, delimited(16, b"\x08\x01\x1d\x00\x00\x00\x00")), "field 3 has wire type 5"),
        (delimited(3, delimited(9, delimited(3, b"\xff"))), "a text is not UTF-8"),
        (b"\x66\x00", "wire type 6 is not valid here"),
        (b"\x53" * 65, "a group has too many fields"),
        (b"\x60\x01" * (LIMITS.max_frames_per_packet + MAX_FIELDS + 1), "too many frames or fields"),
        (delimited(3, b"") * (LIMITS.max_frames_per_packet + 1), "too many frames or fields"),
        (delimited(3, b"\x58\x01" * 65), "a frame is longer or shorter than its fields"),
        (delimited(3, delimited(2, b"\x08\x01" * 65)), "a message is longer or shorter than its fields"),
        (delimited(3, delimited(6, delimited(2, b"x" * 1025))), "a field of 1025 bytes is longer than 1024"),
        (delimited(3, delimited(16, delimited(10, b"x") * 65)), "a field occurs more than 64 times"),
        (delimited(3, delimited(16, delimited(9, b"") * 257)), "a field occurs more than 256 times"),
        (
            delimited(3, delimited(17, delimited(14, b"x" * (256 * KIB + 1)))),
            "a field of 262145 bytes is longer than 262144",
        ),
    ],
)
def test_each_refusal_has_its_cause(data: bytes, why: str) -> None:
    assert refusal(data) == why


def test_as_many_frames_as_the_limit_are_read() -> None:
    most = [Credit(1, n) for n in range(LIMITS.max_frames_per_packet)]
    assert read(encode_packet(2**64 - 1, 2**64 - 1, most)).frames == most


def test_a_full_hello_is_read() -> None:
    services = tuple(Service(f"s{n}", "http", "t") for n in range(LIMITS.max_services))
    hello = Hello(
        1, 1, b"i" * 16, b"b" * 16, "agent", services=services, features=("f",) * LIMITS.max_features
    )
    assert read(encode_packet(0, 0, [hello])).frames == [hello]


# What becomes of payloads and long texts.


def payload_of(packet: Packet) -> Any:
    (frame,) = packet.frames
    assert isinstance(frame, Data)
    return frame.payload


def test_a_large_payload_is_a_view_and_is_not_copied() -> None:
    data = encode_packet(1, 0, [Data(1, 0, b"x" * 64 * KIB)])
    payload = payload_of(read(data))
    assert isinstance(payload, memoryview)
    assert payload.obj is data
    assert payload == b"x" * 64 * KIB


def test_a_small_payload_does_not_keep_its_packet() -> None:
    large, small = Data(1, 0, b"x" * 64 * KIB), Data(3, 0, b"y" * 8 * KIB)
    kept = read(encode_packet(1, 0, [small, large])).frames
    assert [type(frame.payload) for frame in kept if isinstance(frame, Data)] == [bytes, memoryview]
    assert isinstance(payload_of(read(encode_packet(1, 0, [Data(1, 0, b"tiny")]))), bytes)


@given(st.binary(max_size=100), st.integers(0, 20))
def test_a_view_is_written_as_its_bytes(content: bytes, start: int) -> None:
    view = memoryview(content)[start:]
    assert encode_packet(1, 2, [Data(1, 5, view), Open(3, "t", "u", "e", 1, view)]) == encode_packet(
        1, 2, [Data(1, 5, bytes(view)), Open(3, "t", "u", "e", 1, bytes(view))]
    )


def test_an_open_asks_for_tls_in_a_field_that_older_agents_skip() -> None:
    """Without it the bytes are those of version 0.1.0; with it there are two more, of field 13."""
    plain = Open(1, "nvr", "kim", "web", 7)
    before = b"\x08\x01\x12\x03nvr\x1a\x03kim\x22\x03web\x28\x07"
    assert encode_packet(1, 0, [plain]).endswith(before)
    asking = plain._replace(target_tls=True)
    assert encode_packet(1, 0, [asking]).endswith(before + b"\x68\x01")
    fields = BY_FRAME[Open].fields
    old = Fields(*({n: of[n] for n in of if n != 13} for of in (fields.kinds, fields.positions)))
    body = before + b"\x68\x01"
    assert read_fields(body, 0, len(body), old, FieldBudget(MAX_FIELDS)) == list(plain[:8])


def test_a_long_sentence_is_cut_between_characters_both_ways() -> None:
    long, cut = "é" * 400, "é" * 256
    assert read(encode_packet(0, 0, [Reset(1, Reason.DONE, long)])).frames == [Reset(1, Reason.DONE, cut)]
    theirs = tunnel_pb2.Packet(frames=[tunnel_pb2.Frame(bye=tunnel_pb2.Bye(reason=1, detail=long))])
    assert read(theirs.SerializeToString()).frames == [Bye(Reason.DONE, cut)]


def test_no_text_makes_the_writer_fail() -> None:
    frame = Open(1, "\udcff" + "n" * 2000, "u", "e", 1)
    assert read(encode_packet(1, 0, [frame])).frames == [frame._replace(target="?" + "n" * 1023)]


def test_a_negative_number_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError, match="range"):
        encode_packet(1, 0, [Ping(-1)])


def test_a_reason_of_a_later_version_reads_as_protocol_error() -> None:
    stop = delimited(3, delimited(10, b"\x08\x01\x10" + varint(70_000)))
    assert read(stop).frames == [Stop(1, Reason.PROTOCOL_ERROR)]


def test_a_kind_of_a_later_version_is_named_by_its_number() -> None:
    assert read(encode_packet(0, 0, [Unknown(23), Ping(1)])).frames == [Unknown(23), Ping(1)]


def test_an_end_of_nothing_is_read() -> None:
    assert read(encode_packet(1, 1, [End(1, 0), Credit(1, 0)])).frames == [End(1, 0), Credit(1, 0)]


# The table against the description.

WIRE_TYPES = {
    FieldDescriptor.TYPE_UINT64: {"int"},
    FieldDescriptor.TYPE_BOOL: {"bool"},
    FieldDescriptor.TYPE_ENUM: {"Reason"},
    FieldDescriptor.TYPE_STRING: {"str", "tuple[str, ...]"},
    FieldDescriptor.TYPE_BYTES: {"bytes", "Payload"},
    FieldDescriptor.TYPE_MESSAGE: {"tuple[Service, ...]"},
}


def test_every_frame_has_its_kind_and_every_kind_its_row() -> None:
    described = {field.name: field.number for field in tunnel_pb2.Frame.DESCRIPTOR.oneofs[0].fields}
    assert described == {name: BY_FRAME[kind].number for name, kind in KINDS.items()}
    assert len(MESSAGES) == len(KINDS)


@pytest.mark.parametrize("name", [*KINDS, "service"])
def test_members_of_a_frame_are_the_fields_of_its_message_in_order(name: str) -> None:
    kind = KINDS.get(name, frames_module.Service)
    message = tunnel_pb2.DESCRIPTOR.message_types_by_name[name.capitalize()]
    rows = list(zip(numbers_of(kind), kind._fields, strict=True))
    assert [(field.number, field.name) for field in message.fields] == rows
    for field in message.fields:
        assert kind.__annotations__[field.name].replace("SessionSecret", "bytes") in WIRE_TYPES[field.type], (
            field.full_name
        )


def test_hot_kinds_have_tags_of_one_byte() -> None:
    assert all(BY_FRAME[kind].number < 16 for kind in (Data, Credit, End, Ping, Open, Reset, Stop))
    assert BY_FRAME[Hello].number > 15
    assert BY_FRAME[Welcome].number > 15


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.integers(0, 2**40))
def test_data_in_pieces_is_written_as_one(pieces: list[bytes], offset: int) -> None:
    frame = DataParts(7, offset, [memoryview(piece) for piece in pieces])
    assert encode_packet(1, 2, [frame]) == encode_packet(1, 2, [frame.joined()])
