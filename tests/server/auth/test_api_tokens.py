"""API tokens: their text, and those in force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_server.auth.api_tokens import SECRET_BYTES, ApiToken, ApiTokens, digest_of, format_api_token


@given(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_a_token_has_a_form_and_a_digest_of_its_text(secret: bytes) -> None:
    text = format_api_token(secret)
    assert text.startswith("qanat_")
    assert len(text) == 49
    digest = digest_of(text)
    assert digest is not None
    assert len(digest) == 32
    assert digest != secret


@given(st.text())
def test_another_text_is_no_token(text: str) -> None:
    assert digest_of(text) is None


def test_a_token_of_another_length_is_not_made() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        format_api_token(b"short")


def token(number: int, *, user: str = "kim", expires_at: int = 1000) -> tuple[str, ApiToken]:
    text = format_api_token(bytes([number]) * 32)
    digest = digest_of(text)
    assert digest is not None
    return text, ApiToken(f"t{number}", user, "ci", digest, expires_at)


def test_a_token_is_found_until_it_expires_or_is_revoked() -> None:
    (text, one), (other_text, other) = token(1), token(2)
    tokens = ApiTokens([one])
    assert tokens.find(text, 999) == one
    assert tokens.find(text, 1000) is None
    assert tokens.find(other_text, 0) is None
    assert tokens.find("qanat_", 0) is None
    tokens.put(other)
    assert tokens.find(other_text, 5) == other
    revoked: list[str] = []
    tokens.subscribe(lambda gone: revoked.append(gone.id))
    tokens.revoke("t1")
    tokens.revoke("t1")
    tokens.revoke("unknown")
    assert revoked == ["t1"]
    assert tokens.find(text, 0) is None
    assert tokens.find(other_text, 6) == other
    assert tokens.take_uses() == {"t1": 999, "t2": 6}
    assert tokens.take_uses() == {}
