"""Header blocks of HTTP/2 (RFC 7541): decoded whole, one for each connection. No I/O.

The server reads one block of a connection, the head of its only call. So the dynamic table lives as long as
the block, and the size of the block bounds the work. What is sent needs no table: literals without Huffman
coding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

Header: TypeAlias = tuple[bytes, bytes]

_TABLE_BYTES = 4096
_ENTRY_BYTES = 32
_MAX_INTEGER_BYTES = 4
_END_OF_STRING = 256
_STATIC_TEXT = """
:authority | :method=GET | :method=POST | :path=/ | :path=/index.html | :scheme=http | :scheme=https
| :status=200 | :status=204 | :status=206 | :status=304 | :status=400 | :status=404 | :status=500 |
accept-charset | accept-encoding=gzip, deflate | accept-language | accept-ranges | accept |
access-control-allow-origin | age | allow | authorization | cache-control | content-disposition |
content-encoding | content-language | content-length | content-location | content-range |
content-type | cookie | date | etag | expect | expires | from | host | if-match | if-modified-since
| if-none-match | if-range | if-unmodified-since | last-modified | link | location | max-forwards |
proxy-authenticate | proxy-authorization | range | referer | refresh | retry-after | server |
set-cookie | strict-transport-security | transfer-encoding | user-agent | vary | via |
www-authenticate
"""
"""Appendix A."""
_CODE_LENGTHS = (
    "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhfibcccccccccccccccccccc"
    "ccdcdioijbkabababbbaccbbbabcbaabccccckgjixprpprrrsrssssststtrstssssqrsrsstrqprrssqsrrt"
    "qrssqqrqsrssprrrsrrsvvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwvz"
)
"""Appendix B: the length of each symbol's code in bits, ``a`` for 5. The code is canonical."""


class HeaderBlockError(ValueError):
    """The block cannot be decoded."""


def _static_table() -> tuple[Header, ...]:
    entries = (entry.strip().partition("=") for entry in _STATIC_TEXT.replace("\n", " ").split("|"))
    return tuple((name.encode(), value.encode()) for name, _, value in entries)


def _huffman_code() -> dict[tuple[int, int], int]:
    """Return the symbol for each code, by its length in bits and its value."""
    lengths = [ord(letter) - ord("a") + 5 for letter in _CODE_LENGTHS]
    symbols: dict[tuple[int, int], int] = {}
    code, length = 0, 0
    for symbol in sorted(range(len(lengths)), key=lambda one: (lengths[one], one)):
        code <<= lengths[symbol] - length
        length = lengths[symbol]
        symbols[length, code] = symbol
        code += 1
    return symbols


_STATIC = _static_table()
_HUFFMAN = _huffman_code()


def decode_block(block: bytes) -> list[Header]:
    """Return the header fields of a block. Raises ``HeaderBlockError``."""
    return _Decoder(block).decode()


def encode_block(headers: Iterable[Header]) -> bytes:
    """Encode fields as literals that no table keeps. Names and values have at most 126 bytes each."""
    return b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in headers
    )


class _Decoder:
    def __init__(self, block: bytes) -> None:
        self._block = block
        self._at = 0
        self._dynamic: list[Header] = []  # newest first

    def decode(self) -> list[Header]:
        found: list[Header] = []
        while self._at < len(self._block):
            first = self._block[self._at]
            if first & 0x80:
                found.append(self._entry(self._integer(7)))
            elif first & 0xE0 == 0x20:
                self._resize(self._integer(5))
            else:
                found.append(self._literal(is_kept=bool(first & 0x40)))
        return found

    def _literal(self, *, is_kept: bool) -> Header:
        index = self._integer(6 if is_kept else 4)
        name = self._entry(index)[0] if index else self._string()
        header = name, self._string()
        if is_kept:
            self._dynamic.insert(0, header)
            self._resize(_TABLE_BYTES)
        return header

    def _entry(self, index: int) -> Header:
        table: tuple[Header, ...] | list[Header] = _STATIC
        index -= 1
        if index >= len(_STATIC):
            table, index = self._dynamic, index - len(_STATIC)
        if not 0 <= index < len(table):
            raise HeaderBlockError("an index leads outside of the tables")
        return table[index]

    def _resize(self, most: int) -> None:
        if most > _TABLE_BYTES:
            raise HeaderBlockError("the dynamic table is larger than allowed")
        size = 0
        for number, (name, value) in enumerate(self._dynamic):
            size += len(name) + len(value) + _ENTRY_BYTES
            if size > most:
                del self._dynamic[number:]
                return

    def _integer(self, bits: int) -> int:
        most = (1 << bits) - 1
        value = self._byte() & most
        if value < most:
            return value
        for number in range(_MAX_INTEGER_BYTES):
            byte = self._byte()
            value += (byte & 0x7F) << 7 * number
            if not byte & 0x80:
                return value
        raise HeaderBlockError("a number is too large")

    def _byte(self) -> int:
        if self._at >= len(self._block):
            raise HeaderBlockError("the block ends inside a field")
        self._at += 1
        return self._block[self._at - 1]

    def _string(self) -> bytes:
        is_huffman = self._at < len(self._block) and self._block[self._at] & 0x80
        length = self._integer(7)
        text = self._block[self._at : self._at + length]
        if len(text) < length:
            raise HeaderBlockError("the block ends inside a field")
        self._at += length
        return _from_huffman(text) if is_huffman else text


def _from_huffman(text: bytes) -> bytes:
    decoded = bytearray()
    code, length = 0, 0
    for byte in text:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = _HUFFMAN.get((length, code))
            if symbol is not None:
                if symbol == _END_OF_STRING:
                    raise HeaderBlockError("a string has the code for its end")
                decoded.append(symbol)
                code, length = 0, 0
    if length > 7 or code != (1 << length) - 1:
        raise HeaderBlockError("a string is padded wrongly")
    return bytes(decoded)
