"""Tokens as text."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.token import (
    ID_BYTES,
    PIN_BYTES,
    SECRET_BYTES,
    Token,
    TokenMistyped,
    find_token,
    format_token,
    login_text,
    make_token,
    parse_token,
    trouble_with_arguments,
)
from tunnel_core.names import MAX_NODE_NAME

tokens = st.builds(
    make_token,
    st.binary(min_size=PIN_BYTES, max_size=PIN_BYTES),
    st.binary(min_size=ID_BYTES + SECRET_BYTES, max_size=ID_BYTES + SECRET_BYTES),
)
ONE = make_token(bytes(range(32)), bytes(range(100, 130)))
TEXT = format_token(ONE)
NAMED = replace(ONE, made_for="edge1")
NAMED_TEXT = format_token(NAMED)
OTHER_TEXT = format_token(make_token(bytes(32), bytes(30)))


@given(tokens)
def test_a_token_reads_back_the_same(token: Token) -> None:
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
def test_a_mistyped_character_is_distinguished_from_a_wrong_token(place: int, other: str) -> None:
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
        (TEXT[:20] + TEXT[21] + TEXT[20] + TEXT[22:], "checksum does not match"),
    ],
)
def test_the_message_names_the_fault_of_a_token(text: str, sentence: str) -> None:
    with pytest.raises(TokenMistyped, match=sentence):
        parse_token(text)


@given(st.text(max_size=130))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(TokenMistyped):
        assert format_token(parse_token(text)) == text.strip().lower()


# The name of the node in a token.

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) <= MAX_NODE_NAME)
patterns = (
    st.tuples(labels, labels).map(lambda both: f"{both[0]}-*.{both[1]}").filter(lambda one: len(one) < 200)
)


@given(tokens, names | patterns)
def test_the_text_may_name_the_node(token: Token, name: str) -> None:
    named = replace(token, made_for=name)
    text = format_token(named)
    assert parse_token(text) == parse_token(f" {text.upper()}\n") == find_token(text) == named
    assert named.digest == token.digest
    first = text.rpartition("_")[0]
    assert first == login_text(named) == format_token(token)
    assert parse_token(first) == token, "older agents and servers take the first part"


def test_the_longest_name() -> None:
    longest = replace(ONE, made_for=".".join(["a" * 63] * 3 + ["b" * 61]))
    assert parse_token(format_token(longest)) == longest
    assert len(format_token(longest)) == 522


@given(st.integers(112, len(NAMED_TEXT) - 1), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_wrong_character_in_the_name_is_detected(place: int, other: str) -> None:
    changed = NAMED_TEXT[:place] + other + NAMED_TEXT[place + 1 :]
    if changed != NAMED_TEXT:
        with pytest.raises(TokenMistyped, match="after its second _"):
            parse_token(changed)


@given(st.integers(112, len(NAMED_TEXT) - 1))
def test_a_truncated_name_is_detected(end: int) -> None:
    with pytest.raises(TokenMistyped, match="truncated or altered after its second _"):
        parse_token(NAMED_TEXT[:end])


def test_the_name_of_one_token_does_not_fit_another() -> None:
    with pytest.raises(TokenMistyped, match="altered"):
        parse_token(OTHER_TEXT + NAMED_TEXT[len(TEXT) :])


@pytest.mark.parametrize("name", ["Edge", "a b", "edge_1", "*" * 5, "a" * 254])
def test_an_impossible_name_in_a_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="for a node or for a pattern"):
        replace(ONE, made_for=name)


def test_text_after_the_name_is_refused() -> None:
    with pytest.raises(TokenMistyped, match="too many"):
        parse_token(f"{TEXT}_{'a' * 5000}")


# What people give.

LINE = f"echo {NAMED_TEXT} | qanat-agent join tunnel.example.com:7002"


@pytest.mark.parametrize(
    "text",
    [
        NAMED_TEXT,
        f"  {NAMED_TEXT}\r\n",
        f'"{NAMED_TEXT}"',
        f"'{NAMED_TEXT}'\n",
        f"\N{LEFT DOUBLE QUOTATION MARK}{NAMED_TEXT}\N{RIGHT DOUBLE QUOTATION MARK}",
        f"`{NAMED_TEXT}`",
        f"<{NAMED_TEXT}>",
        f"\N{NO-BREAK SPACE}{NAMED_TEXT}\N{ZERO WIDTH SPACE}",
        f"QANAT_TOKEN={NAMED_TEXT}",
        f"token: {NAMED_TEXT},",
        LINE,
        f"  {LINE}\n",
        f"{LINE}\n{LINE}\n",
        f"Token {ONE.id} for node edge1, until tomorrow.\n\nOn the node:\n  {LINE}\n",
        f"{NAMED_TEXT[:80]}\n{NAMED_TEXT[80:]}",
        f"{NAMED_TEXT[:60]} \n  {NAMED_TEXT[60:118]}\n  {NAMED_TEXT[118:]}\n",
        NAMED_TEXT.upper(),
    ],
)
def test_a_token_is_found_in_pasted_text(text: str) -> None:
    assert find_token(text) == NAMED


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the input is empty"),
        (" \n", "the input is empty"),
        ('""', "the input is empty"),
        ("TOKEN", "'TOKEN' is only a placeholder for the token"),
        ("<token>\n", "'<token>' is only a placeholder for the token"),
        ("$TOKEN", "is only a placeholder for the token"),
        ("${TOKEN}", "is only a placeholder for the token"),
        ("your-token", "is only a placeholder for the token"),
        ("qanat-agent join tunnel.example.com --token-file token", "this is a command without a token"),
        ("echo TOKEN | qanat-agent join tunnel.example.com", "this is a command without a token"),
        ("hunter2", "does not begin with qanat1_"),
        ("qanat2_abc", "is of another version"),
        (f"{TEXT} {OTHER_TEXT}", "the text has 2 tokens; enter one"),
        (TEXT[:-3], "has 108 characters and must have 111"),
        (f"echo {NAMED_TEXT[:-3]} | qanat-agent join x", "truncated or altered"),
    ],
)
def test_a_text_without_a_token_is_refused_with_the_cause(text: str, sentence: str) -> None:
    with pytest.raises(TokenMistyped, match=re.escape(sentence)) as caught:
        find_token(text)
    assert "hunter2" not in str(caught.value) and TEXT[24:40] not in str(caught.value)


@given(st.text(max_size=130) | st.text(max_size=20).map(lambda text: f"{text}{TEXT}{text}"))
def test_any_text_has_a_token_or_a_reason(text: str) -> None:
    try:
        found = find_token(text)
    except TokenMistyped as error:
        assert str(error)
    else:
        assert login_text(found) in "".join(text.split()).lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["join", TEXT],
        ["join", "tunnel.example.com", NAMED_TEXT],
        ["join", "x", f"--token={TEXT}"],
        ["token", "revoke", NAMED_TEXT.upper()],
        ["join", "x", "--name", TEXT[:40]],
    ],
)
def test_a_token_in_the_arguments_is_not_echoed(arguments: list[str]) -> None:
    output = trouble_with_arguments(arguments)
    assert "standard input" in output and f"qanat-server token revoke {ONE.id}" in output
    assert TEXT[24:30] not in output


def test_arguments_without_a_token_are_fine() -> None:
    assert trouble_with_arguments(["join", "qanat1.example.com", "--name", "qanat1_a", ONE.id]) == ""


def test_the_repr_of_a_token_shows_no_secret() -> None:
    assert repr(ONE) == f"Token(id='{ONE.id}', made_for='')"
    assert repr(NAMED) == f"Token(id='{ONE.id}', made_for='edge1')"


def test_reading_one_loads_no_cryptography() -> None:
    program = "import sys, certs.token; print('cryptography' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout == "False\n"
