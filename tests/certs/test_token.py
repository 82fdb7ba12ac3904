"""Tokens as text."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.token import (
    ID_BYTES,
    PIN_BYTES,
    SECRET_BYTES,
    Token,
    TokenMistyped,
    format_token,
    make_token,
    parse_token,
)

tokens = st.builds(
    make_token,
    st.binary(min_size=PIN_BYTES, max_size=PIN_BYTES),
    st.binary(min_size=ID_BYTES + SECRET_BYTES, max_size=ID_BYTES + SECRET_BYTES),
)
ONE = make_token(bytes(range(32)), bytes(range(100, 130)))
TEXT = format_token(ONE)


@given(tokens)
def test_there_and_back(token: Token) -> None:
    text = format_token(token)
    assert parse_token(text) == parse_token(f"  {text.upper()}\n") == token
    assert text.startswith(f"qanat1_{token.id}")
    assert len(token.digest) == 32


@given(tokens, tokens)
def test_different_tokens_have_different_digests(one: Token, other: Token) -> None:
    assert (one == other) == (one.digest == other.digest)


def test_a_changed_pin_is_another_digest() -> None:
    assert Token(ONE.id, ONE.secret, bytes(32)).digest != ONE.digest


@given(st.integers(0, len(TEXT) - 1), st.characters(codec="ascii"))
def test_one_wrong_character_is_told_from_a_wrong_token(place: int, other: str) -> None:
    changed = TEXT[:place] + other + TEXT[place + 1 :]
    if changed.strip().lower() == TEXT:
        return
    with pytest.raises(TokenMistyped) as caught:
        parse_token(changed)
    assert TEXT[7:20] not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "does not begin with qanat1_"),
        ("hunter2", "does not begin with qanat1_"),
        ("qanat2_" + TEXT[7:], "another version"),
        (TEXT[:-1], "has 110 characters and must have 111"),
        (TEXT + "a", "has 112 characters"),
        (TEXT[:-1] + "1", "a-z and 2-7"),
        (TEXT[:-1] + "\N{LATIN SMALL LETTER SHARP S}", "a-z and 2-7"),
        (TEXT[:20] + TEXT[21] + TEXT[20] + TEXT[22:], "checksum does not fit"),
    ],
)
def test_what_is_wrong_is_said(text: str, sentence: str) -> None:
    with pytest.raises(TokenMistyped, match=sentence):
        parse_token(text)


@given(st.text(max_size=130))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(TokenMistyped):
        assert format_token(parse_token(text)) == text.strip().lower()


def test_its_repr_shows_no_secret() -> None:
    assert repr(ONE) == f"Token(id='{ONE.id}')"


def test_reading_one_loads_no_cryptography() -> None:
    program = "import sys, certs.token; print('cryptography' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout == "False\n"
