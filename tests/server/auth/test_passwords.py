"""Password hashes: what verifies, and what is accepted as a hash."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunnel_server.auth import passwords
from tunnel_server.auth.passwords import hash_password, is_password_hash, verify_password, why_no_password


def test_a_password_has_a_hash_of_its_own_each_time_and_verifies() -> None:
    stored = hash_password("correct horse é")
    assert is_password_hash(stored)
    assert "correct" not in stored
    assert verify_password(stored, "correct horse e\u0301"), "one spelling for both"
    assert not verify_password(stored, "correct horse")


def test_a_user_without_a_password_has_none_that_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    import argon2.low_level

    verified: list[bytes] = []
    original = argon2.low_level.verify_secret

    def count(digest: bytes, secret: bytes, kind: argon2.low_level.Type) -> bool:
        verified.append(digest)
        return original(digest, secret, kind)

    monkeypatch.setattr(argon2.low_level, "verify_secret", count)
    assert not verify_password(None, "correct horse battery")
    assert not verify_password("no hash", "\udcff")
    costs = hash_password("x" * 12).rsplit("$", 2)[0]
    assert [digest.decode().rsplit("$", 2)[0] for digest in verified] == [costs], "as much work as for others"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "$argon2i$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43,
        "$argon2id$v=19$m=9999999,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43,
        "$argon2id$v=19$m=65536,t=0,p=4$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43,
        "$argon2id$v=19$m=65536,t=3,p=99$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43,
        "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAA",
        passwords._NOBODY + "\n",
    ],
)
def test_other_hashes_and_hashes_that_cost_too_much_are_refused(text: str) -> None:
    assert not is_password_hash(text)


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short", "at least 12 characters"),
        ("x" * 2000, "at most 1024 bytes"),
        ("\udcff" * 12, "UTF-8"),
        ("twelve chars", None),
    ],
)
def test_what_can_be_a_password(password: str, why: str | None) -> None:
    found = why_no_password(password)
    assert found is None if why is None else why in str(found)


def test_the_library_is_loaded_by_the_first_hash_alone_and_its_absence_has_a_remedy() -> None:
    code = (
        "import sys, tunnel_server.commands.users, tunnel_server.store.store;"
        "print('argon2' in sys.modules);"
        "sys.modules['argon2'] = None;"
        "from tunnel_server.auth.passwords import PasswordsUnavailable, hash_password\n"
        "try: hash_password('x' * 12)\n"
        "except PasswordsUnavailable as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    loaded, remedy = ran.stdout.splitlines()
    assert loaded == "False"
    assert "pip install 'argon2-cffi" in remedy
