"""Text files of people: with a byte order mark, in UTF-16, in an old code page, or not text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.text_files import NotPlainText, read_text_file, text_of, trouble_with, without_mark


@pytest.mark.parametrize("text", ["", "key = 1\n", "größe\r\n", "\N{ZERO WIDTH NO-BREAK SPACE}twice"])
def test_a_mark_is_no_part_of_the_text(text: str) -> None:
    assert text_of(text.encode("utf-8-sig")) == text
    assert without_mark(text.encode("utf-8-sig")) == text.encode()


@given(
    st.text().filter(lambda text: "\0" not in text and not text.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"))
)
def test_text_stays_what_it_is(text: str) -> None:
    assert text_of(text.encode()) == text


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("key = 1".encode("utf-16"), "is UTF-16 text, as some Windows programs write it; save it as UTF-8"),
        ("key = 1".encode("utf-16-be"), "has NUL bytes, so it is UTF-16 or no text at all"),
        ("key = 1".encode("utf-16-le"), "has NUL bytes"),
        ("key = 1".encode("utf-32"), "save it as UTF-8"),
        (b"# one\nname = 'gr\xf6\xdfe'", "is not UTF-8 text: byte 0xf6 in line 2; save it as UTF-8"),
        (b"\xef\xbb\xbf\n\nx\x80", "byte 0x80 in line 3"),
    ],
)
def test_a_file_that_is_no_text_is_named_by_its_kind(data: bytes, sentence: str) -> None:
    with pytest.raises(NotPlainText, match=sentence):
        text_of(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        assert text_of(data).encode() in data
    except NotPlainText as error:
        assert "UTF-8" in str(error)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text_file(file, 5) == "ab"
    with pytest.raises(OSError, match="No such file") as caught:
        read_text_file(tmp_path / "no", 5)
    assert trouble_with(tmp_path / "no", caught.value).endswith(
        "no cannot be read: No such file or directory"
    )
    assert trouble_with(file, NotPlainText("is not UTF-8 text")) == f"{file} is not UTF-8 text"
