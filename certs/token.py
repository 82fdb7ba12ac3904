"""Join tokens as text: what an operator pastes on a new node. No I/O, and no cryptography to import.

``qanat1_`` and 104 characters of base32 in lower case, so that a double click takes all of it and it
can be read out aloud. In them, in bytes:

    id 10 | secret 20 | pin 32 | checksum 3

The id is no secret: lists and logs show it. The pin is the SHA-256 of the key of the root that the
server's certificate leads to, so the node knows the server before the server knows the node. The
checksum tells a slip of the pen from a token that is wrong, before the server is asked.

The server keeps only a digest of id, secret and pin. Plain SHA-256 is right for it: nobody guesses 160
random bits, so there is nothing that a slow hash would slow down. The pin is in the digest, therefore a
token whose pin was exchanged is a wrong one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

PREFIX = "qanat1_"
ID_BYTES = 10
SECRET_BYTES = 20
PIN_BYTES = 32
_CHECKSUM_BYTES = 3
_TEXT_CHARS = (ID_BYTES + SECRET_BYTES + PIN_BYTES + _CHECKSUM_BYTES) * 8 // 5


class TokenMistyped(ValueError):  # noqa: N818 - what it is
    """The text is no token, or not all of one. The message says what is wrong and never quotes it."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token. ``repr`` shows its id alone."""

    id: str
    secret: bytes = field(repr=False)
    pin: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(_id_bytes(self.id)) != ID_BYTES or len(self.secret) != SECRET_BYTES:
            raise ValueError("a token has an id of 10 bytes and a secret of 20")
        if len(self.pin) != PIN_BYTES:
            raise ValueError("a pin has 32 bytes")

    @property
    def digest(self) -> bytes:
        """What the server keeps of it and compares. 32 bytes."""
        return hashlib.sha256(self._content).digest()

    @property
    def _content(self) -> bytes:
        return _id_bytes(self.id) + self.secret + self.pin


def make_token(pin: bytes, chance: bytes) -> Token:
    """A token of ``ID_BYTES + SECRET_BYTES`` random bytes, which nobody else may know."""
    return Token(_base32(chance[:ID_BYTES]), chance[ID_BYTES:], pin)


def format_token(token: Token) -> str:
    """The text to paste. It is the secret: not for logs, nor for argv."""
    content = token._content
    return PREFIX + _base32(content + _checksum(content))


def parse_token(text: str) -> Token:
    """Reads ``format_token``'s text; blanks around it and upper case will do. Raises ``TokenMistyped``."""
    plain = text.strip().lower()
    if not plain.startswith(PREFIX):
        newer = plain.startswith("qanat") and "_" in plain
        why = "is of another version" if newer else f"does not begin with {PREFIX}"
        raise TokenMistyped(f"the token {why}; paste all that `qanat-server token create` printed")
    body = plain.removeprefix(PREFIX)
    if len(body) != _TEXT_CHARS:
        raise TokenMistyped(
            f"the token has {len(PREFIX) + len(body)} characters and must have {len(PREFIX) + _TEXT_CHARS}:"
            " a part is missing, or there is too much"
        )
    return _of_bytes(_decoded(body))


def _decoded(body: str) -> bytes:
    try:
        return base64.b32decode(body.upper().encode("ascii"))
    except ValueError:  # binascii.Error, and what is not ASCII
        raise TokenMistyped("the token has a character that no token has (it has a-z and 2-7)") from None


def _of_bytes(data: bytes) -> Token:
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum != _checksum(content):
        raise TokenMistyped("the token has a wrong character somewhere (its checksum does not fit); paste it")
    secret_and_pin = content[ID_BYTES:]
    return Token(_base32(content[:ID_BYTES]), secret_and_pin[:SECRET_BYTES], secret_and_pin[SECRET_BYTES:])


def _id_bytes(text: str) -> bytes:
    return base64.b32decode(text.upper().encode("ascii"))


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + content).digest()[:_CHECKSUM_BYTES]


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").lower()
