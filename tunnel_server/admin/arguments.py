"""Strict arguments of an action: a missing, unknown or mistyped argument is refused. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunnel_core.identity import Role, is_identity_name, why_no_name
from tunnel_core.reasons import Reason, Refused

_MAX_TEXT = 16 * 1024
_MAX_ITEMS = 1000
_SERIAL = re.compile(r"[0-9a-f]{1,40}")


class Arguments:
    """Arguments of an action, each read once. A GET request has only texts.

    Every method raises ``Refused`` for a missing or mistyped argument, and ``done`` for an unread one.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._left = dict(given)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text of at most 16 Ki characters."""
        value = self._take(name, default)
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise bad(f"{name} must be a text")
        return value

    def number(self, name: str, default: float | None = None, *, least: float, most: float) -> float:
        """Return a number from ``least`` to ``most``. A text of digits is accepted too."""
        value = self._take(name, default)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}(\.[0-9]{1,6})?", value, re.ASCII):
            value = float(value) if "." in value else int(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise bad(f"{name} must be a number")
        if not least <= value <= most:
            raise bad(f"{name} must be from {least:g} to {most:g}")
        return value

    def whole(self, name: str, default: int | None = None, *, least: int, most: int) -> int:
        """Return a whole number from ``least`` to ``most``."""
        value = self.number(name, default, least=least, most=most)
        if value != int(value):
            raise bad(f"{name} must be a whole number")
        return int(value)

    def flag(self, name: str) -> bool:
        """Return a boolean, false if it is missing. The texts ``1`` and ``0`` are accepted too."""
        value = self._take(name, False)
        if value in ("1", "0"):
            return bool(value == "1")
        if not isinstance(value, bool):
            raise bad(f"{name} must be true or false")
        return value

    def texts(self, name: str, *, most: int = _MAX_ITEMS) -> list[str]:
        """Return a list of texts, at least one."""
        value = self._take(name, None)
        if not isinstance(value, list) or not 0 < len(value) <= most:
            raise bad(f"{name} must be a list of 1 to {most} texts")
        if not all(isinstance(item, str) and len(item) <= _MAX_TEXT for item in value):
            raise bad(f"{name} must be a list of texts")
        return value

    def table(self, name: str) -> dict[str, Any]:
        """Return a table, whose content the caller checks."""
        value = self._take(name, None)
        if not isinstance(value, dict):
            raise bad(f"{name} must be a table")
        return value

    def name(self, role: Role, key: str = "name") -> str:
        """Return the name of a node or user."""
        value = self.text(key)
        if not is_identity_name(role, value):
            raise bad(why_no_name(role, value))
        return value

    def serial(self, key: str = "serial") -> str:
        """Return a certificate's serial in normal form. Colons, ``0x`` and upper case are accepted."""
        given = self.text(key)
        value = given.lower().removeprefix("0x").replace(":", "").lstrip("0")
        if not _SERIAL.fullmatch(value):
            raise bad(f"{given[:80]!r} is not a certificate's serial: hex digits, as `cert list` shows them")
        return value

    def done(self) -> None:
        """Raise ``Refused`` if an argument was not read, because it is unknown."""
        if self._left:
            raise bad(f"{min(self._left)[:80]!r} is not an argument of this request")

    def _take(self, name: str, default: Any) -> Any:
        value = self._left.pop(name, default)
        if value is None:
            raise bad(f"{name} is missing")
        return value


def bad(sentence: str) -> Refused:
    """Return a refusal with the reason ``BAD_REQUEST``."""
    return Refused(Reason.BAD_REQUEST, sentence)
