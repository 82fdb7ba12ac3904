"""The frames as a table: which number each has in ``Frame``, and the kinds of its fields, in order.

``tunnel.proto`` gives fields the numbers 1, 2, 3, ... in the order of the members of ``frames``, leaving
out what is set aside (``then``), so one loop reads, and one writes, every frame by its row. A test
holds the rows against the generated classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, reason_from_code
from tunnel_core.wire import frames
from tunnel_core.wire.frames import Service, SessionSecret
from tunnel_core.wire.protobuf import (
    DELIMITED,
    MAX_FIELDS,
    SMALL,
    SMALL_END,
    SUB_MESSAGE_FIELDS,
    VARINT,
    FieldBudget,
    WireFormatError,
    rest_of_size,
    rest_of_tag,
    rest_of_varint,
    skip_field,
    varint,
)

_LIMITS = Limits()
_MOST_TEXT = _LIMITS.max_text_bytes
_UNBOUNDED = 1 << 63
_CUT = "utf-8", "ignore"


@dataclass(frozen=True, slots=True)
class FieldKind:
    """How fields of one kind are written and read. ``most``: how often it may repeat; 0: it does not.

    ``read`` takes the number, or at most ``most_bytes`` bytes. For a sub-message (``inner``) it takes the
    list of its values.
    """

    wire: int
    default: Any
    write: Callable[[Any], bytes]
    read: Callable[[Any], Any]
    most: int = 0
    inner: Fields | None = None
    most_bytes: int = _UNBOUNDED


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a message, by their numbers in the order of its members."""

    kinds: Mapping[int, FieldKind]
    places: Mapping[int, int]
    by_tag: Mapping[int, tuple[int, FieldKind]] = field(init=False)
    """Place and kind of each, by number and wire type as they stand on the wire."""
    defaults: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        places, kinds = self.places, self.kinds
        by_tag = {number << 3 | kind.wire: (places[number], kind) for number, kind in kinds.items()}
        object.__setattr__(self, "by_tag", by_tag)
        object.__setattr__(self, "defaults", tuple(kind.default for kind in kinds.values()))

    def then(self, number: int, kind: FieldKind) -> Fields:
        """One field more, whose number does not follow on the last one's."""
        return Fields({**self.kinds, number: kind}, {**self.places, number: len(self.places)})


def _in_order(*kinds: FieldKind) -> Fields:
    return Fields(dict(enumerate(kinds, 1)), {number: number - 1 for number in range(1, len(kinds) + 1)})


def _text_to_bytes(text: str, most: int) -> bytes:
    """Never raises: what UTF-8 cannot say becomes ``?``, and what is too long is cut.

    That no name becomes another by being cut rests on the bound, which no valid name reaches.
    """
    raw = text.encode("utf-8", "replace")
    return raw if len(raw) <= most else raw[:most].decode(*_CUT).encode()


def _write_text(text: str) -> bytes:
    return text.encode() if text.isascii() and len(text) <= _MOST_TEXT else _text_to_bytes(text, _MOST_TEXT)


def _write_detail(detail: str) -> bytes:
    return _text_to_bytes(detail, _LIMITS.max_detail_bytes)


def _read_detail(raw: bytes) -> str:
    text = raw.decode()
    return text if len(raw) <= _LIMITS.max_detail_bytes else raw[: _LIMITS.max_detail_bytes].decode(*_CUT)


def _write_reason(reason: Reason) -> bytes:
    return varint(reason.code)


def _read_reason(code: int) -> Reason:
    return reason_from_code(code & 0xFFFFFFFF)  # enums have 32 bits


def _write_service(service: Service) -> bytes:
    return write_fields(service, _SERVICE_FIELDS)


def _write_number(number: int) -> bytes:
    return SMALL[number] if 0 <= number < SMALL_END else varint(number)


_NUMBER = FieldKind(VARINT, 0, _write_number, int)
_FLAG = FieldKind(VARINT, False, varint, bool)
_REASON = FieldKind(VARINT, reason_from_code(0), _write_reason, _read_reason)
_TEXT = FieldKind(DELIMITED, "", _write_text, bytes.decode, most_bytes=_MOST_TEXT)
_DETAIL = FieldKind(DELIMITED, "", _write_detail, _read_detail)
_ID = FieldKind(DELIMITED, b"", bytes, bytes, most_bytes=_MOST_TEXT)
_SECRET = FieldKind(DELIMITED, SessionSecret(), bytes, SessionSecret, most_bytes=_MOST_TEXT)
_CONTENT = FieldKind(DELIMITED, b"", bytes, bytes)
_TRUST_BUNDLE = FieldKind(DELIMITED, b"", bytes, bytes, most_bytes=_LIMITS.max_trust_bundle_bytes)
_FEATURES = FieldKind(
    DELIMITED, (), _write_text, bytes.decode, most=_LIMITS.max_features, most_bytes=_MOST_TEXT
)
_SERVICE_FIELDS = _in_order(_TEXT, _TEXT, _TEXT)
_SERVICES = FieldKind(DELIMITED, (), _write_service, Service._make, _LIMITS.max_services, _SERVICE_FIELDS)


@dataclass(frozen=True, slots=True)
class Message:
    """One row: the frame's class, its number in ``Frame``, its fields."""

    frame: type[Any]
    number: int
    fields: Fields


MESSAGES = (
    Message(frames.Data, 1, _in_order(_NUMBER, _NUMBER, _CONTENT)),
    Message(frames.Credit, 2, _in_order(_NUMBER, _NUMBER)),
    Message(frames.End, 3, _in_order(_NUMBER, _NUMBER)),
    Message(frames.Ping, 4, _in_order(_NUMBER, _NUMBER)),
    Message(frames.Pong, 5, _in_order(_NUMBER)),
    Message(
        frames.Open,
        6,
        _in_order(_NUMBER, _TEXT, _TEXT, _TEXT, _NUMBER, _CONTENT, _TEXT, _NUMBER).then(13, _FLAG),
    ),
    Message(frames.Opened, 7, _in_order(_NUMBER, _NUMBER, _TEXT)),
    Message(frames.RefusedFrame, 8, _in_order(_NUMBER, _REASON, _DETAIL)),
    Message(frames.Reset, 9, _in_order(_NUMBER, _REASON, _DETAIL)),
    Message(frames.Stop, 10, _in_order(_NUMBER, _REASON)),
    Message(
        frames.Hello,
        16,
        _in_order(_NUMBER, _NUMBER, _ID, _ID, _TEXT, _ID, _SECRET, _NUMBER, _SERVICES, _FEATURES, _NUMBER)
        .then(15, _FLAG)
        .then(20, _NUMBER)
        .then(21, _FLAG),
    ),
    Message(
        frames.Welcome,
        17,
        _in_order(
            *(_NUMBER, _ID, _SECRET, _NUMBER, _TEXT),
            *(_NUMBER,) * 5,
            *(_TEXT, _TEXT, _TEXT, _TRUST_BUNDLE, _FEATURES, _NUMBER, _FLAG),
        ).then(25, _FLAG),
    ),
    Message(frames.Use, 18, _in_order(_NUMBER, _NUMBER)),
    Message(frames.Rejected, 19, _in_order(_REASON, _DETAIL, _NUMBER)),
    Message(frames.Bye, 20, _in_order(_REASON, _DETAIL)),
    Message(frames.Draining, 21, _in_order(_NUMBER)),
)
BY_NUMBER = {message.number: message for message in MESSAGES}
BY_FRAME: dict[type[Any], Message] = {message.frame: message for message in MESSAGES}


def write_fields(values: tuple[Any, ...], fields: Fields) -> bytes:
    """The body of a message; defaults are left out, as protobuf does."""
    parts: list[bytes] = []
    for (number, kind), value in zip(fields.kinds.items(), values, strict=True):
        if not value:
            continue
        for one in value if kind.most else (value,):
            raw = SMALL[one] if kind is _NUMBER and 0 <= one < SMALL_END else kind.write(one)
            parts.append(SMALL[number << 3 | kind.wire])
            if kind.wire == DELIMITED:
                size = len(raw)
                parts.append(SMALL[size] if size < SMALL_END else varint(size))
            parts.append(raw)
    return b"".join(parts)


def read_fields(data: bytes, i: int, end: int, fields: Fields, budget: FieldBudget) -> list[Any]:
    """The values of a message's fields, in order. Raises as ``protobuf`` does, and ``UnicodeDecodeError``."""
    by_tag = fields.by_tag
    values = list(fields.defaults)
    repeated: dict[int, list[Any]] = {}
    count = 0
    while i < end and count < MAX_FIELDS:
        count += 1
        tag = data[i]
        i += 1
        if tag > 127:
            tag, i = rest_of_tag(data, i, tag)
        found = by_tag.get(tag)
        if found is None:
            i = skip_field(data, i, tag, fields.kinds, budget)
            continue
        place, kind = found
        value = data[i]  # the number, or the length of the content
        i += 1
        if tag & 7 == VARINT:
            if value > 127:
                value, i = rest_of_varint(data, i, value)
            values[place] = kind.read(value)
            continue
        if value > 127:
            value, i = rest_of_size(data, i, value)
        raw = data[i : i + value]
        i += value
        if len(raw) > kind.most_bytes:
            raise WireFormatError(f"a field of {len(raw)} bytes is longer than {kind.most_bytes}")
        if kind.most:
            count -= 1
            _read_repeated(place, kind, raw, repeated, budget)
        else:
            values[place] = kind.read(raw)
    if i != end:
        raise WireFormatError("a message is longer or shorter than its fields")
    budget.charge(count)
    for place, items in repeated.items():
        values[place] = tuple(items)
    return values


def _read_repeated(
    place: int, kind: FieldKind, raw: bytes, repeated: dict[int, list[Any]], budget: FieldBudget
) -> None:
    items = repeated.setdefault(place, [])
    if len(items) == kind.most:
        raise WireFormatError(f"a field stands more than {kind.most} times")
    if kind.inner is None:
        budget.charge(1)
        items.append(kind.read(raw))
    else:
        budget.charge(SUB_MESSAGE_FIELDS)
        items.append(kind.read(read_fields(raw, 0, len(raw), kind.inner, budget)))
