"""Packets that hypothesis draws. The oracle for them is protobuf's own classes."""

from __future__ import annotations

from typing import Any, get_args

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import strategies as st

from tunnel_core.reasons import Reason, reason_from_code
from tunnel_core.wire.codec import encode_packet
from tunnel_core.wire.frames import (
    Data,
    DataParts,
    Frame,
    Hello,
    Packet,
    RefusedFrame,
    Rejected,
    Service,
    SessionSecret,
    Unknown,
    Use,
    Welcome,
)
from tunnel_core.wire.pb import tunnel_pb2
from tunnel_core.wire.protobuf import varint
from tunnel_core.wire.schema import BY_FRAME

KINDS: dict[str, type[Any]] = {
    "refused" if kind is RefusedFrame else kind.__name__.lower(): kind
    for kind in get_args(Frame)
    if kind not in (Unknown, DataParts)
}
"""Frame classes by the names that the proto gives them."""
ATTACH_KINDS = (Hello, Welcome, Use, Rejected)
"""Frames that must be alone in their packet."""
# Slow and plain reading and writing, with the generated classes.


def by_protobuf(data: bytes) -> Packet | None:
    """Return what protobuf reads, or None where protobuf or a rule of Qanat refuses the bytes."""
    try:
        message = tunnel_pb2.Packet.FromString(data)
    except DecodeError:
        return None
    if any(map(_has_foreign_wire_type, _messages_of(message))):
        return None
    if any(map(_holds_more_than_one_kind, _raw_frames(data))):
        return None
    frames = [_frame_from(frame) for frame in message.frames]
    kinds = [type(frame) for frame in frames]
    if len(kinds) > 1 and set(kinds) & set(ATTACH_KINDS) and kinds != [Welcome, Rejected]:
        return None
    return Packet(message.number, message.ack, frames, message.arrived, message.confirm_now)


def _raw_frames(data: bytes) -> list[bytes]:
    return [field.data for field in _raw_fields(data) if (field.field_number, field.wire_type) == (3, 2)]


def _raw_fields(data: bytes) -> list[Any]:
    return list(UnknownFieldSet(Empty.FromString(data)))


def _holds_more_than_one_kind(frame: bytes) -> bool:
    """Whether a frame has several kinds, or one kind in pieces. Only ``data`` may be in pieces."""
    known = tunnel_pb2.Frame.DESCRIPTOR.fields_by_number
    found = [field.field_number for field in _raw_fields(frame) if field.field_number in known]
    return len(found) > 1 and set(found) != {1}


def _messages_of(packet: tunnel_pb2.Packet) -> list[Message]:
    kinds = [getattr(frame, kind) for frame in packet.frames if (kind := frame.WhichOneof("kind"))]
    services = [service for kind in kinds if isinstance(kind, tunnel_pb2.Hello) for service in kind.services]
    return [packet, *packet.frames, *kinds, *services]


def _has_foreign_wire_type(message: Message) -> bool:
    known = message.DESCRIPTOR.fields_by_number
    return any(field.field_number in known for field in UnknownFieldSet(message))


def _frame_from(message: tunnel_pb2.Frame) -> Frame:
    kind = message.WhichOneof("kind")
    if kind is None:
        fields = list(UnknownFieldSet(message))
        return Unknown(fields[-1].field_number if fields else 0)
    frame: Frame = _tuple_from(KINDS[kind], getattr(message, kind))
    return frame


def _tuple_from(kind: type[Any], message: Message) -> Any:
    return kind(*(_value_from(name, getattr(message, name)) for name in kind._fields))


def _value_from(name: str, value: Any) -> Any:
    if name == "reason":
        return reason_from_code(value)
    if name == "services":
        return tuple(_tuple_from(Service, service) for service in value)
    return tuple(value) if name == "features" else value


def to_protobuf(packet: Packet) -> tunnel_pb2.Packet:
    message = tunnel_pb2.Packet(
        number=packet.number, ack=packet.ack, arrived=packet.arrived, confirm_now=packet.ack_immediately
    )
    for frame in packet.frames:
        name = next(name for name, kind in KINDS.items() if kind is type(frame))
        _fill(getattr(message.frames.add(), name), frame)
    return message


def _fill(message: Message, values: Any) -> None:
    message.SetInParent()
    for name, value in values._asdict().items():
        if name == "services":
            for service in value:
                _fill(message.services.add(), service)
        elif name == "features":
            message.features.extend(value)
        elif value:
            setattr(message, name, value.code if name == "reason" else value)


# Frames that hypothesis draws.

numbers = (
    st.integers(0, 2**64 - 1) | st.integers(0, 300) | st.sampled_from([2**k - 1 for k in range(7, 65, 7)])
)
texts = st.text(max_size=40)
ids = st.binary(max_size=40)
BY_TYPE = {
    "int": numbers,
    "str": texts,
    "bytes": ids,
    "SessionSecret": ids.map(SessionSecret),
    "bool": st.booleans(),
    "Payload": st.binary(max_size=200),
}
BY_TYPE["Reason"] = st.sampled_from(Reason)
BY_TYPE["tuple[str, ...]"] = st.lists(texts, max_size=3).map(tuple)
BY_TYPE["tuple[Service, ...]"] = st.lists(st.builds(Service, texts, texts, texts), max_size=3).map(tuple)


def frames_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(*(_values(kind, name) for name in kind._fields)).map(lambda values: kind(*values))


def _values(kind: type[Any], name: str) -> st.SearchStrategy[Any]:
    """Return values of a field. No stream has number 0, so the writer may always write the number."""
    return numbers.filter(bool) if name == "stream" else BY_TYPE[kind.__annotations__[name]]


def _plain_annotations() -> None:
    """Replace ForwardRef annotations, which NamedTuple keeps where annotations are postponed."""
    for kind in [*KINDS.values(), Service]:
        for name, annotation in kind.__annotations__.items():
            kind.__annotations__[name] = getattr(annotation, "__forward_arg__", annotation)


_plain_annotations()
session_frames = st.one_of(*(frames_of(kind) for kind in KINDS.values() if kind not in ATTACH_KINDS))
attach_frames = st.one_of(*map(frames_of, ATTACH_KINDS))
frame_lists = st.lists(session_frames, max_size=6) | attach_frames.map(lambda frame: [frame])
stamps = st.integers(0, 2**32 - 1)
packets = st.builds(Packet, numbers, numbers, frame_lists, stamps, st.booleans())


def delimited(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


unknown_numbers = st.sampled_from([22, 40, 300, 20_000, 2**29 - 1])
plain_unknowns = st.one_of(
    st.builds(lambda n, v: varint(n << 3) + varint(v), unknown_numbers, numbers),
    st.builds(lambda n, v: varint(n << 3 | 1) + v, unknown_numbers, st.binary(min_size=8, max_size=8)),
    st.builds(delimited, unknown_numbers, st.binary(max_size=20)),
    st.builds(lambda n, v: varint(n << 3 | 5) + v, unknown_numbers, st.binary(min_size=4, max_size=4)),
)
unknowns = st.recursive(
    plain_unknowns,
    lambda inner: st.builds(
        lambda n, parts: varint(n << 3 | 3) + b"".join(parts) + varint(n << 3 | 4),
        unknown_numbers,
        st.lists(inner, max_size=3),
    ),
    max_leaves=5,
)


def padded(number: bytes) -> bytes:
    """Return the same varint in one byte more, if its length allows that."""
    return number[:-1] + bytes((number[-1] | 128, 0)) if len(number) < 10 else number


long_tags = st.sampled_from(
    [lambda tag: varint(tag), lambda tag: bytes((tag & 127 | 128, tag >> 7 | 128, 0))]
)
any_varints = numbers.map(varint) | numbers.map(varint).map(padded)


@st.composite
def disordered(draw: st.DrawFn, kind: type[Any]) -> bytes:
    """Draw the fields of one frame in any order, with repeats, unknown fields, and tags that are too long."""
    parts = draw(st.lists(unknowns, max_size=2))
    for name, index in draw(st.permutations(list(zip(kind._fields, numbers_of(kind), strict=True)))):
        for _ in range(draw(st.integers(0, 2))):
            parts.append(draw(_field(kind, name, index)))
    return b"".join(draw(st.permutations(parts)))


def numbers_of(kind: type[Any]) -> list[int]:
    return list(BY_FRAME[kind].fields.kinds) if kind in BY_FRAME else [1, 2, 3]


def _field(kind: type[Any], name: str, index: int) -> st.SearchStrategy[bytes]:
    annotation = kind.__annotations__[name]
    if annotation in {"int", "bool", "Reason"}:
        return st.builds(lambda tag, number: tag(index << 3) + number, long_tags, any_varints)
    if annotation == "tuple[Service, ...]":
        bodies: st.SearchStrategy[bytes] = disordered(Service)
    else:
        bodies = texts.map(str.encode) if "str" in annotation else ids
    return st.builds(lambda tag, body: tag(index << 3 | 2) + varint(len(body)) + body, long_tags, bodies)


def _pieces(kind: type[Any]) -> st.SearchStrategy[bytes]:
    return disordered(kind).map(lambda body: delimited(BY_FRAME[kind].number, body))


def _odd_frames(*kinds: type[Any]) -> st.SearchStrategy[bytes]:
    """Draw a frame of one of these kinds, or of none. ``data`` may be in pieces."""
    bodies = [
        st.lists(unknowns | _pieces(Data), max_size=4) if kind is Data else _once(_pieces(kind))
        for kind in kinds
    ]
    return st.one_of(*bodies).map(b"".join).map(lambda body: delimited(3, body))


def _once(piece: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    return st.builds(
        lambda one, before, after: [*before, one, *after],
        piece,
        st.lists(unknowns, max_size=1),
        st.lists(unknowns, max_size=1),
    )


odd_fields = (
    unknowns
    | st.builds(lambda n, v: varint(n << 3) + varint(v), st.sampled_from([1, 2, 4, 6]), numbers)
    | stamps.map(lambda stamp: b"\x2d" + stamp.to_bytes(4, "little"))
)
odd_session_frames = _odd_frames(*(kind for kind in KINDS.values() if kind not in ATTACH_KINDS))
odd_packets = st.lists(odd_session_frames | odd_fields, max_size=5).map(b"".join) | st.builds(
    lambda frame, fields: b"".join([*fields, frame]),
    _odd_frames(*ATTACH_KINDS),
    st.lists(odd_fields, max_size=3),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(packets.map(lambda packet: encode_packet(*packet)) | odd_packets))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "insert", "delete", "cut"])):
            case "change" if place < len(data):
                data[place] = draw(st.integers(0, 255))
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=4))
            case "delete":
                del data[place : place + 1]
            case "cut":
                del data[place:]
    return bytes(data)
