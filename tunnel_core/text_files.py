"""Files that people write or paste: text in UTF-8, with or without a byte order mark.

Editors of Windows put the mark in front, where neither TOML, nor PEM, nor a comparison of secrets expects it.
Text in UTF-16, which PowerShell's ``>`` writes, is refused in words, because what it was made from may have
lost characters already. Nothing is imported that takes time: the health probe reads with this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LOOKED_AT = 256


class NotPlainText(ValueError):  # noqa: N818 - what the file is
    """The bytes are no UTF-8 text. The message says what they are and what to do, to stand behind a name."""


def text_of(data: bytes) -> str:
    """The text, without a byte order mark. Raises ``NotPlainText``."""
    plain = without_mark(data)
    try:
        return plain.decode()
    except UnicodeDecodeError as error:
        line = plain.count(b"\n", 0, error.start) + 1
        raise NotPlainText(
            f"is not UTF-8 text: byte 0x{plain[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None


def without_mark(data: bytes) -> bytes:
    """The same bytes without a byte order mark. Raises ``NotPlainText`` for UTF-16 and the like."""
    head = data[:_LOOKED_AT]
    if head.startswith(_WIDE_MARKS):
        raise NotPlainText("is UTF-16 text, as some Windows programs write it; save it as UTF-8")
    if b"\0" in head:
        raise NotPlainText("has NUL bytes, so it is UTF-16 or no text at all; save it as UTF-8")
    return data.removeprefix(_MARK)


def read_text_file(path: Path, most_bytes: int) -> str:
    """The text of a file, at most ``most_bytes`` of it. Raises ``OSError`` or ``NotPlainText``."""
    with path.open("rb") as file:
        return text_of(file.read(most_bytes))


def trouble_with(path: Path, error: OSError | NotPlainText) -> str:
    """A sentence that says which file cannot be used, and why."""
    if isinstance(error, NotPlainText):
        return f"{path} {error}"
    return f"{path} cannot be read: {error.strerror}"
