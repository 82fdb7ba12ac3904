"""Read files that people write or paste: text in UTF-8, with or without a byte order mark.

Editors on Windows write the mark first, where neither TOML, nor PEM, nor a comparison of secrets expects it.
Text in UTF-16, which PowerShell's ``>`` writes, is refused with a remedy, because its conversion may have
lost characters already. This module imports nothing slow, because the health probe uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CHECKED_BYTES = 256


class NotPlainText(ValueError):  # noqa: N818 - what the file is
    """Raised for bytes that are no UTF-8 text. The message has cause and remedy, and follows a file's
    name."""


def text_of(data: bytes) -> str:
    """Return the text without a byte order mark. Raises ``NotPlainText``."""
    plain = without_mark(data)
    try:
        return plain.decode()
    except UnicodeDecodeError as error:
        line = plain.count(b"\n", 0, error.start) + 1
        raise NotPlainText(
            f"is not UTF-8 text: byte 0x{plain[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None


def without_mark(data: bytes) -> bytes:
    """Return the bytes without a byte order mark. Raises ``NotPlainText`` for UTF-16 and binary data."""
    head = data[:_CHECKED_BYTES]
    if head.startswith(_UTF16_MARKS):
        raise NotPlainText("is UTF-16 text, as some Windows programs write it; save it as UTF-8")
    if b"\0" in head:
        raise NotPlainText("has NUL bytes, so it is UTF-16 or no text at all; save it as UTF-8")
    return data.removeprefix(_MARK)


def read_text_file(path: Path, max_bytes: int) -> str:
    """Return the text of a file, at most ``max_bytes`` of it. Raises ``OSError`` or ``NotPlainText``."""
    with path.open("rb") as file:
        return text_of(file.read(max_bytes))


def trouble_with(path: Path, error: OSError | NotPlainText) -> str:
    """Return a sentence with the file that cannot be used, and the cause."""
    if isinstance(error, NotPlainText):
        return f"{path} {error}"
    return f"{path} cannot be read: {error.strerror}"
