"""Validity and renewal time of a certificate, read without the cryptography library.

A running agent needs both, and the library would cost it about 11 MB. This module reads three fields, which
X.509 has at fixed places (RFC 5280, section 4.1). It reads only the node's own file, which the agent trusts
anyway. TLS verifies the certificate.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

BACK_DATED = timedelta(hours=1)
"""Time by which the validity begins before the issue, because a node's clock may be behind the server's."""
_RENEWED_AT, _SPREAD = 2 / 3, 1 / 15
"""Part of the validity at which a certificate is renewed, and the random spread to either side: 0.6 to 0.73.
A fleet must not come back at once."""
_LATE_AT = 4 / 5
"""Part of the validity after which a renewal is overdue. Programs renew at two thirds, so a later certificate
has a problem. For a user, whose certificate no program renews, the warning is a reminder."""
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_TIME = re.compile(r"([0-9]{4})" + r"([0-9]{2})" * 5 + "Z")
_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18


@dataclass(frozen=True, slots=True)
class ValidityPeriod:
    """Validity of a certificate. Both times are aware datetimes; ``serial`` is in hex."""

    serial: str
    begins: datetime
    ends: datetime

    @property
    def issued(self) -> datetime:
        """Time of issue. A validity of more than an hour is taken as back-dated by an hour."""
        return self.begins + BACK_DATED if self.ends - self.begins > BACK_DATED else self.begins

    def renewal(self, chance: float) -> datetime:
        """Return the time of renewal: two thirds of the validity, spread by ``chance``, a number from 0 to 1.

        Without the spread, a fleet that joined in one hour would renew in one hour.
        """
        part = _RENEWED_AT + _SPREAD * (2 * chance - 1)
        return self.issued + (self.ends - self.issued) * part

    def seconds(self) -> float:
        """Return the length of the validity, from the time of issue."""
        return (self.ends - self.issued).total_seconds()


def is_late(begins: datetime, ends: datetime, now: datetime) -> bool:
    """Whether the renewal of a certificate with this validity is overdue."""
    return now >= begins + (ends - begins) * _LATE_AT


def validity_of(chain_pem: bytes) -> ValidityPeriod:
    """Return the validity of the first certificate of a chain (PEM). Raises ``ValueError``."""
    found = _BLOCK.search(chain_pem)
    if found is None:
        raise ValueError("there is no certificate")
    certificate = _Der(base64.b64decode(b"".join(found[1].split()), validate=True))
    content = certificate.inside(_SEQUENCE).inside(_SEQUENCE)
    if content.next_tag == _VERSION:
        content.take(_VERSION)
    serial = content.take(_INTEGER)
    content.take(_SEQUENCE)  # Algorithm of the signature.
    content.take(_SEQUENCE)  # Issuer.
    validity = content.inside(_SEQUENCE)
    return ValidityPeriod(f"{int.from_bytes(serial, signed=True):x}", validity.time(), validity.time())


class _Der:
    """Reader of the elements of one sequence, in order (X.690, section 8.1)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def next_tag(self) -> int:
        return self._data[self._at] if self._at < len(self._data) else -1

    def take(self, *tags: int) -> bytes:
        """Return the content of the next element, whose tag must be in ``tags``. Raises ``ValueError``."""
        if self.next_tag not in tags:
            raise ValueError("it is not an X.509 certificate")
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
        if is_short:  # RFC 5280, section 4.1.2.5.1: years below 50 are in this century.
            text = ("20" if text < "5" else "19") + text
        match = _TIME.fullmatch(text)
        if match is None:
            raise ValueError("the certificate has a date that cannot be read")
        year, month, day, hour, minute, second = map(int, match.groups())
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)

    def _length(self, at: int) -> tuple[int, int]:
        """Return the length of an element, and the offset of its content."""
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
