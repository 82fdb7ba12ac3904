"""How long a certificate holds and when it is renewed, read without the library.

A running agent must know both, and the library would cost it some 11 MB. What is read here is the node's
own file, which it believes anyway, and of that three fields: X.509 puts them at fixed places (RFC 5280,
section 4.1). Whether the certificate is worth anything is for TLS to say.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

BACK_DATED = timedelta(hours=1)
"""Edge clocks run late; a certificate must hold for a node whose clock is behind the server's."""
_RENEWED_AT, _SPREAD = 2 / 3, 1 / 15
"""Part of the life at which a certificate is renewed, and the random spread to either side: 0.6 to 0.73. A
fleet must not come back at once."""
_LATE_AT = 4 / 5
"""Of a certificate's life. Programs renew theirs at two thirds, so then something is wrong; a person, whose
certificate nobody renews, is reminded."""
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_TIME = re.compile(r"([0-9]{4})" + r"([0-9]{2})" * 5 + "Z")
_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18


@dataclass(frozen=True, slots=True)
class ValidityPeriod:
    """Both ends are aware datetimes; ``serial`` is in hex, as everywhere."""

    serial: str
    begins: datetime
    ends: datetime

    @property
    def issued(self) -> datetime:
        """When it was made, if its start was back-dated as ours are; else its start."""
        return self.begins + BACK_DATED if self.ends - self.begins > BACK_DATED else self.begins

    def renewal(self, chance: float) -> datetime:
        """When to renew it: at two thirds of its life, spread by a random number from 0 to 1.

        A fleet that joined in one hour does not come back in one.
        """
        part = _RENEWED_AT + _SPREAD * (2 * chance - 1)
        return self.issued + (self.ends - self.issued) * part

    def seconds(self) -> float:
        """How long it was meant to hold."""
        return (self.ends - self.issued).total_seconds()


def is_late(begins: datetime, ends: datetime, now: datetime) -> bool:
    """Whether a certificate of this life should have been renewed by now."""
    return now >= begins + (ends - begins) * _LATE_AT


def life_of(chain_pem: bytes) -> ValidityPeriod:
    """Of the first certificate of a chain. Raises ``ValueError``."""
    found = _BLOCK.search(chain_pem)
    if found is None:
        raise ValueError("there is no certificate")
    certificate = _Der(base64.b64decode(b"".join(found[1].split()), validate=True))
    content = certificate.inside(_SEQUENCE).inside(_SEQUENCE)
    if content.next_tag == _VERSION:
        content.take(_VERSION)
    serial = content.take(_INTEGER)
    content.take(_SEQUENCE)  # the signature's algorithm
    content.take(_SEQUENCE)  # the issuer
    validity = content.inside(_SEQUENCE)
    return ValidityPeriod(f"{int.from_bytes(serial, signed=True):x}", validity.time(), validity.time())


class _Der:
    """Elements of one sequence, in their order (X.690, section 8.1)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def next_tag(self) -> int:
        return self._data[self._at] if self._at < len(self._data) else -1

    def take(self, *tags: int) -> bytes:
        """The content of the next element, which must be of one of these kinds."""
        if self.next_tag not in tags:
            raise ValueError("it is no X.509 certificate")
        length, start = self._length(self._at + 1)
        content = self._data[start : start + length]
        if len(content) < length:
            raise ValueError("the certificate is cut short")
        self._at = start + length
        return content

    def inside(self, tag: int) -> _Der:
        return _Der(self.take(tag))

    def time(self) -> datetime:
        is_short = self.next_tag == _UTC_TIME
        text = self.take(_UTC_TIME, _GENERALIZED_TIME).decode("ascii")
        if is_short:  # RFC 5280, section 4.1.2.5.1: below 50 is this century
            text = ("20" if text < "5" else "19") + text
        match = _TIME.fullmatch(text)
        if match is None:
            raise ValueError("the certificate has a date that cannot be read")
        year, month, day, hour, minute, second = map(int, match.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)

    def _length(self, at: int) -> tuple[int, int]:
        """The length of an element, and where its content begins."""
        head = self._data[at : at + 1]
        if not head:
            raise ValueError("the certificate is cut short")
        if head[0] < 0x80:
            return head[0], at + 1
        count = head[0] & 0x7F
        octets = self._data[at + 1 : at + 1 + count]
        if not 1 <= count <= 4 or len(octets) < count:
            raise ValueError("the certificate is cut short")
        return int.from_bytes(octets), at + 1 + count
