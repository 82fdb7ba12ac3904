"""Join tokens as text, which an operator pastes on a new node. No I/O, and no import of cryptography.

A token is ``qanat1_`` and 104 characters of base32 in lower case. A double click selects it, and it can be
read out. The base32 has, in bytes:

    id 10 | secret 20 | pin 32 | checksum 3

A second part may follow: ``_`` and base32 again. It has the node's name, or the pattern of names, for which
the server created the token. So a join knows its name before it connects. This part is a hint, because the
server uses its own record. The first part alone is the same token, which older agents and servers accept.

    name 1 to 253 | checksum 3, of this part and the first

The id is not secret: lists and logs show it. The pin is the SHA-256 of the key of the root to which the
server's certificate leads. So the node can verify the server before the server knows the node. The checksum
detects a typing error without a request to the server.

The server stores only a digest of id, secret and pin. Plain SHA-256 suffices, because an attacker cannot
guess 160 random bits. The digest includes the pin, so a token with an altered pin is refused.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tunnel_core.names import MAX_NODE_NAME, is_node_name
from tunnel_core.node_patterns import is_pattern

PREFIX = "qanat1_"
ID_BYTES = 10
SECRET_BYTES = 20
PIN_BYTES = 32
_CHECKSUM_BYTES = 3
_HINT_SEPARATOR = "_"
_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_ID_CHARS = ID_BYTES * 8 // 5
_TOKEN_LIKE = re.compile(rf"(?<![a-z0-9_]){PREFIX}[a-z0-9_]*", re.IGNORECASE | re.ASCII)
_BEGINNING = re.compile(rf"(?<![a-z0-9_]){PREFIX}([a-z2-7]{{{_ID_CHARS}}})", re.IGNORECASE | re.ASCII)
_MARGIN = " \t\r\n\f\v\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{NO-BREAK SPACE}"
"""Characters that users leave around a token."""
_PLACEHOLDERS = ("token", "the token", "your token", "your-token", "yourtoken", "join token", "join-token")
_COMMAND = "qanat-agent"
_TEXT_CHARS = (ID_BYTES + SECRET_BYTES + PIN_BYTES + _CHECKSUM_BYTES) * 8 // 5
_MAX_HINT_CHARS = -(-(MAX_NODE_NAME + _CHECKSUM_BYTES) * 8 // 5)


class TokenMistyped(ValueError):  # noqa: N818 - what it is
    """The text is not a complete token. The message has the cause, and never quotes the text."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token. ``repr`` shows only its id and its hint.

    ``made_for`` is the hint: the node's name or a pattern of names, empty without a hint.
    """

    id: str
    secret: bytes = field(repr=False)
    pin: bytes = field(repr=False)
    made_for: str = ""

    def __post_init__(self) -> None:
        if len(_id_bytes(self.id)) != ID_BYTES or len(self.secret) != SECRET_BYTES:
            raise ValueError("a token has an id of 10 bytes and a secret of 20")
        if len(self.pin) != PIN_BYTES:
            raise ValueError("a pin has 32 bytes")
        if self.made_for and not (is_node_name(self.made_for) or is_pattern(self.made_for)):
            raise ValueError("a token is made for a node or for a pattern of nodes")

    @property
    def digest(self) -> bytes:
        """Digest that the server stores and compares, 32 bytes."""
        return hashlib.sha256(self._content).digest()

    @property
    def _content(self) -> bytes:
        return _id_bytes(self.id) + self.secret + self.pin


def make_token(pin: bytes, chance: bytes, made_for: str = "") -> Token:
    """Create a token. ``chance`` has ``ID_BYTES + SECRET_BYTES`` random bytes, which must be secret."""
    return Token(_base32(chance[:ID_BYTES]), chance[ID_BYTES:], pin, made_for)


def format_token(token: Token) -> str:
    """Return the text of a token. It contains the secret, so it must not be in logs or in argv."""
    content, name = token._content, token.made_for.encode()
    first = PREFIX + _base32(content + _checksum(content))
    return first + _HINT_SEPARATOR + _base32(name + _checksum(content + name)) if name else first


def login_text(token: Token) -> str:
    """Return the first part of the text, for the server. The server needs no hint, and old ones refuse it."""
    return format_token(replace(token, made_for=""))


def parse_token(text: str) -> Token:
    """Parse the text of a token, also in upper case or with blanks around it. Raises ``TokenMistyped``."""
    plain = text.strip().lower()
    if not plain.startswith(PREFIX):
        raise TokenMistyped(_not_ours(plain))
    body, separator, hint = plain.removeprefix(PREFIX).partition(_HINT_SEPARATOR)
    if len(body) != _TEXT_CHARS:
        raise TokenMistyped(
            f"the token has {len(PREFIX) + len(body)} characters and must have {len(PREFIX) + _TEXT_CHARS}"
            f"{' before its second _' if separator else ''}: it is truncated or too long"
        )
    token = _of_bytes(_decoded(body))
    return replace(token, made_for=_made_for(token, hint)) if separator else token


def _decoded(body: str) -> bytes:
    """Return the bytes of the base32, or none if it is not canonical base32. Raises ``TokenMistyped``."""
    if not _ALPHABET.issuperset(body):
        raise TokenMistyped("the token has an invalid character (it may have a-z and 2-7)")
    try:
        data = base64.b32decode(body.upper().encode("ascii") + b"=" * (-len(body) % 8))
    except binascii.Error:
        return b""
    return data if _base32(data) == body else b""  # The last character may have unused bits.


def _of_bytes(data: bytes) -> Token:
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if checksum != _checksum(content):
        raise TokenMistyped("the token has a wrong character (its checksum does not match); paste it")
    secret_and_pin = content[ID_BYTES:]
    return Token(_base32(content[:ID_BYTES]), secret_and_pin[:SECRET_BYTES], secret_and_pin[SECRET_BYTES:])


def _made_for(token: Token, hint: str) -> str:
    if len(hint) > _MAX_HINT_CHARS:
        raise TokenMistyped(f"the token has {len(hint)} characters after its second _, which are too many")
    data = _decoded(hint)
    name, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if not name or checksum != _checksum(token._content + name):
        raise TokenMistyped(
            "the token is truncated or altered after its second _ (its checksum does not match);"
            " paste all of it"
        )
    try:
        return replace(token, made_for=name.decode("ascii")).made_for
    except ValueError:  # The checksum matches, so the token is of a later version.
        raise TokenMistyped("the token has a name that no node can have; is this agent too old?") from None


def find_token(text: str) -> Token:
    """Parse a token as users enter it: in quotes, wrapped into lines, or within the command to paste.

    Raises ``TokenMistyped``, also for more than one token.
    """
    found = list(dict.fromkeys(match.lower() for match in _TOKEN_LIKE.findall(text)))
    if not found:
        raise TokenMistyped(_why_no_token(text.strip(_MARGIN)))
    try:
        if len(found) > 1:
            raise TokenMistyped(f"the text has {len(found)} tokens; enter one")
        return parse_token(found[0])
    except TokenMistyped as error:
        with contextlib.suppress(TokenMistyped):
            return parse_token("".join(text.strip(_MARGIN).split()))
        raise error from None


def _why_no_token(text: str) -> str:
    create = "`qanat-server token create --node NAME` on the server prints one"
    if not text:
        return f"there is no token: the input is empty; {create}"
    if text.lower().strip("<>[](){}$%_.*") in _PLACEHOLDERS:
        return f"{text[:40]!r} is only a placeholder for the token; {create}"
    if _COMMAND in text:
        return f"this is a command without a token; {create}"
    return _not_ours(text.lower())


def _not_ours(text: str) -> str:
    newer = text.startswith("qanat") and "_" in text
    why = "is of another version" if newer else f"does not begin with {PREFIX}"
    return f"the token {why}; paste all that `qanat-server token create` printed"


def trouble_with_arguments(arguments: Sequence[str]) -> str:
    """Return the error for a command line that contains a token, else an empty text. It shows only the id."""
    found = next(filter(None, map(_BEGINNING.search, arguments)), None)
    if found is None:
        return ""
    token_id = found[1].lower()
    return (
        "a token is in the arguments, where `ps` and the shell's history show it to others."
        " `qanat-agent join SERVER` reads it from standard input or --token-file; qanat-server's commands"
        f" take only its id, {token_id}. If others may have seen it: `qanat-server token revoke {token_id}`"
    )


def _id_bytes(text: str) -> bytes:
    return base64.b32decode(text.upper().encode("ascii"))


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + content).digest()[:_CHECKSUM_BYTES]


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()
