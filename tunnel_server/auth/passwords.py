"""Password hashes: argon2id. Only this module imports ``argon2``, and only when a password is hashed.

Both functions block for about a tenth of a second and take 64 MiB of memory.
"""

from __future__ import annotations

import re
import unicodedata

MIN_PASSWORD = 12
"""Characters of a password at least: a guess costs an attacker a tenth of a second of a processor."""
MAX_PASSWORD_BYTES = 1024
"""Bytes of a password at most, so that a login costs no more than its hash."""
_TIME_COST, _MEMORY_KIB, _PARALLELISM = 3, 64 * 1024, 4
"""RFC 9106, the second recommended choice: three passes over 64 MiB."""
_HASH = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,3}),p=([0-9]{1,2})"
    r"\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{43,86}"
)
_MAX_COSTS = (256 * 1024, 16, 16)
"""Memory (KiB), passes and threads of a hash that is accepted, because every login with it pays them."""
_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
"""Hash that no password has. A login of an unknown user is checked against it, and takes as long."""


class PasswordsUnavailable(Exception):  # noqa: N818 - named by what is missing
    """The library ``argon2-cffi`` is not installed. The text has the remedy."""


def why_no_password(password: str) -> str | None:
    """Return a sentence why ``password`` cannot be a password, or None."""
    if len(password) < MIN_PASSWORD:
        return f"a password has at least {MIN_PASSWORD} characters"
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        return "a password is text in UTF-8"
    if size > MAX_PASSWORD_BYTES:
        return f"a password has at most {MAX_PASSWORD_BYTES} bytes"
    return None


def hash_password(password: str) -> str:
    """Return the hash of ``password`` with a new salt. Blocks. Raises ``PasswordsUnavailable``."""
    try:
        from argon2 import PasswordHasher
    except ImportError:
        raise _unavailable() from None
    return PasswordHasher(_TIME_COST, _MEMORY_KIB, _PARALLELISM).hash(_normal(password))


def verify_password(stored: str | None, password: str) -> bool:
    """Whether ``password`` has the hash ``stored``; None stands for a user without one, and takes as long.

    Blocks. Raises ``PasswordsUnavailable``.
    """
    try:
        from argon2.exceptions import Argon2Error, InvalidHashError
        from argon2.low_level import Type, verify_secret
    except ImportError:
        raise _unavailable() from None
    known = stored if stored is not None and is_password_hash(stored) else None
    try:
        is_right = verify_secret((known or _NOBODY).encode(), _normal(password).encode(), Type.ID)
    except (Argon2Error, InvalidHashError, UnicodeEncodeError):
        return False
    return is_right and known is not None


def is_password_hash(text: str) -> bool:
    """Whether ``text`` is an argon2id hash whose costs a server accepts."""
    match = _HASH.fullmatch(text)
    return match is not None and all(
        1 <= int(cost) <= most for cost, most in zip(match.groups(), _MAX_COSTS, strict=True)
    )


def _normal(password: str) -> str:
    """Return one spelling of the password, because keyboards and browsers compose letters differently."""
    return unicodedata.normalize("NFKC", password)


def _unavailable() -> PasswordsUnavailable:
    fix = "pip install 'argon2-cffi>=23.1' into the environment of qanat-server"
    return PasswordsUnavailable(f"passwords need the library argon2-cffi, which is not installed: {fix}")
