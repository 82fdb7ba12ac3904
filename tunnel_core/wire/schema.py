"""The table of frames: the number of each in ``Frame``, and the kinds of its fields, in order.

``tunnel.proto`` numbers fields 1, 2, 3, ... in the order of the members of ``frames.py``. ``with_field`` adds
a field after reserved numbers. So one loop reads, and one loop writes, every frame by its row. A test
compares the rows with the generated classes.
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
_MAX_TEXT = _LIMITS.max_text_bytes
_UNBOUNDED = 1 << 63
_CUT = "utf-8", "ignore"


@dataclass(frozen=True, slots=True)
class FieldKind:
    """Writer and reader of fields of one kind. ``max_repeats`` 0: the field does not repeat.

    ``read`` gets the number, or at most ``max_bytes`` bytes. For a sub-message (``inner``) it takes the
    list of its values.
    """

    wire: int
    default: Any
    write: Callable[[Any], bytes]
    read: Callable[[Any], Any]
    max_repeats: int = 0
    inner: Fields | None = None
    max_bytes: int = _UNBOUNDED


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a message: kinds and positions in the frame, by field number."""

    kinds: Mapping[int, FieldKind]
    positions: Mapping[int, int]
    by_tag: Mapping[int, tuple[int, FieldKind]] = field(init=False)
    """Position and kind of each field, by its tag on the wire."""
    defaults: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        positions, kinds = self.positions, self.kinds
        by_tag = {number << 3 | kind.wire: (positions[number], kind) for number, kind in kinds.items()}
        object.__setattr__(self, "by_tag", by_tag)
        object.__setattr__(self, "defaults", tuple(kind.default for kind in kinds.values()))

    def with_field(self, number: int, kind: FieldKind) -> Fields:
        """Return these fields and one more, whose number leaves out reserved ones."""
        return Fields({**self.kinds, number: kind}, {**self.positions, number: len(self.positions)})


def _numbered(*kinds: FieldKind) -> Fields:
    return Fields(dict(enumerate(kinds, 1)), {number: number - 1 for number in range(1, len(kinds) + 1)})


def _text_to_bytes(text: str, max_bytes: int) -> bytes:
    """Encode ``text`` and never raise: lone surrogates become ``?``, and text beyond ``max_bytes`` is cut.

    Cutting never turns one name into another, because no valid name reaches the bound.
    """
    raw = text.encode("utf-8", "replace")
    return raw if len(raw) <= max_bytes else raw[:max_bytes].decode(*_CUT).encode()


def _write_text(text: str) -> bytes:
    return text.encode() if text.isascii() and len(text) <= _MAX_TEXT else _text_to_bytes(text, _MAX_TEXT)


def _write_detail(detail: str) -> bytes:
    return _text_to_bytes(detail, _LIMITS.max_detail_bytes)


def _read_detail(raw: bytes) -> str:
    text = raw.decode()
    return text if len(raw) <= _LIMITS.max_detail_bytes else raw[: _LIMITS.max_detail_bytes].decode(*_CUT)


def _write_reason(reason: Reason) -> bytes:
    return varint(reason.code)


def _read_reason(code: int) -> Reason:
    return reason_from_code(code & 0xFFFFFFFF)  # an enum has 32 bits


def _write_service(service: Service) -> bytes:
    return write_fields(service, _SERVICE_FIELDS)


def _write_number(number: int) -> bytes:
    return SMALL[number] if 0 <= number < SMALL_END else varint(number)


_NUMBER = FieldKind(VARINT, 0, _write_number, int)
_FLAG = FieldKind(VARINT, False, varint, bool)
_REASON = FieldKind(VARINT, reason_from_code(0), _write_reason, _read_reason)
_TEXT = FieldKind(DELIMITED, "", _write_text, bytes.decode, max_bytes=_MAX_TEXT)
_DETAIL = FieldKind(DELIMITED, "", _write_detail, _read_detail)
_ID = FieldKind(DELIMITED, b"", bytes, bytes, max_bytes=_MAX_TEXT)
_SECRET = FieldKind(DELIMITED, SessionSecret(), bytes, SessionSecret, max_bytes=_MAX_TEXT)
_CONTENT = FieldKind(DELIMITED, b"", bytes, bytes)
_TRUST_BUNDLE = FieldKind(DELIMITED, b"", bytes, bytes, max_bytes=_LIMITS.max_trust_bundle_bytes)
_FEATURES = FieldKind(
    DELIMITED, (), _write_text, bytes.decode, max_repeats=_LIMITS.max_features, max_bytes=_MAX_TEXT
)
_SERVICE_FIELDS = _numbered(_TEXT, _TEXT, _TEXT)
_SERVICES = FieldKind(DELIMITED, (), _write_service, Service._make, _LIMITS.max_services, _SERVICE_FIELDS)


@dataclass(frozen=True, slots=True)
class Message:
    """One row: the class of a frame, its number in ``Frame``, and its fields."""

    frame: type[Any]
    number: int
    fields: Fields


MESSAGES = (
    Message(frames.Data, 1, _numbered(_NUMBER, _NUMBER, _CONTENT)),
    Message(frames.Credit, 2, _numbered(_NUMBER, _NUMBER)),
    Message(frames.End, 3, _numbered(_NUMBER, _NUMBER)),
    Message(frames.Ping, 4, _numbered(_NUMBER, _NUMBER)),
    Message(frames.Pong, 5, _numbered(_NUMBER)),
    Message(
        frames.Open,
        6,
        _numbered(_NUMBER, _TEXT, _TEXT, _TEXT, _NUMBER, _CONTENT, _TEXT, _NUMBER).with_field(13, _FLAG),
    ),
    Message(frames.Opened, 7, _numbered(_NUMBER, _NUMBER, _TEXT)),
    Message(frames.RefusedFrame, 8, _numbered(_NUMBER, _REASON, _DETAIL)),
    Message(frames.Reset, 9, _numbered(_NUMBER, _REASON, _DETAIL)),
    Message(frames.Stop, 10, _numbered(_NUMBER, _REASON)),
    Message(
        frames.Hello,
        16,
        _numbered(_NUMBER, _NUMBER, _ID, _ID, _TEXT, _ID, _SECRET, _NUMBER, _SERVICES, _FEATURES, _NUMBER)
        .with_field(15, _FLAG)
        .with_field(20, _NUMBER)
        .with_field(21, _FLAG),
    ),
    Message(
        frames.Welcome,
        17,
        _numbered(
            *(_NUMBER, _ID, _SECRET, _NUMBER, _TEXT),
            *(_NUMBER,) * 5,
            *(_TEXT, _TEXT, _TEXT, _TRUST_BUNDLE, _FEATURES, _NUMBER, _FLAG),
        ).with_field(25, _FLAG),
    ),
    Message(frames.Use, 18, _numbered(_NUMBER, _NUMBER)),
    Message(frames.Rejected, 19, _numbered(_REASON, _DETAIL, _NUMBER)),
    Message(frames.Bye, 20, _numbered(_REASON, _DETAIL)),
    Message(frames.Draining, 21, _numbered(_NUMBER)),
)
BY_NUMBER = {message.number: message for message in MESSAGES}
BY_FRAME: dict[type[Any], Message] = {message.frame: message for message in MESSAGES}


def write_fields(values: tuple[Any, ...], fields: Fields) -> bytes:
    """Return the body of a message, without default values, as protobuf does."""
    parts: list[bytes] = []
    for (number, kind), value in zip(fields.kinds.items(), values, strict=True):
        if not value:
            continue
        for item in value if kind.max_repeats else (value,):
            raw = SMALL[item] if kind is _NUMBER and 0 <= item < SMALL_END else kind.write(item)
            parts.append(SMALL[number << 3 | kind.wire])
            if kind.wire == DELIMITED:
                size = len(raw)
                parts.append(SMALL[size] if size < SMALL_END else varint(size))
            parts.append(raw)
    return b"".join(parts)


def read_fields(data: bytes, i: int, end: int, fields: Fields, budget: FieldBudget) -> list[Any]:
    """Return the values of a message's fields, in order.

    Raises ``WireFormatError``, ``IndexError`` or ``UnicodeDecodeError`` for bytes that are no such message.
    """
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
        position, kind = found
        value = data[i]  # the number, or the length of the content
        i += 1
        if tag & 7 == VARINT:
            if value > 127:
                value, i = rest_of_varint(data, i, value)
            values[position] = kind.read(value)
            continue
        if value > 127:
            value, i = rest_of_size(data, i, value)
        raw = data[i : i + value]
        i += value
        if len(raw) > kind.max_bytes:
            raise WireFormatError(f"a field of {len(raw)} bytes is longer than {kind.max_bytes}")
        if kind.max_repeats:
            count -= 1
            _read_repeated(position, kind, raw, repeated, budget)
        else:
            values[position] = kind.read(raw)
    if i != end:
        raise WireFormatError("a message is longer or shorter than its fields")
    budget.charge(count)
    for position, items in repeated.items():
        values[position] = tuple(items)
    return values


def _read_repeated(
    position: int, kind: FieldKind, raw: bytes, repeated: dict[int, list[Any]], budget: FieldBudget
) -> None:
    items = repeated.setdefault(position, [])
    if len(items) == kind.max_repeats:
        raise WireFormatError(f"a field occurs more than {kind.max_repeats} times")
    if kind.inner is None:
        budget.charge(1)
        items.append(kind.read(raw))
    else:
        budget.charge(SUB_MESSAGE_FIELDS)
        items.append(kind.read(read_fields(raw, 0, len(raw), kind.inner, budget)))
