"""Configuration from environment variables: each single value of a schema has one, ``QANAT_SECTION_KEY``.

What the environment says is laid over the file. Lists and tables of names come from the file alone: they
have an order, and entries that belong together. Pure: who reads the environment passes it in.
"""

from __future__ import annotations

import difflib
import enum
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs

from tunnel_core.config.types import (
    Count,
    ListenAddress,
    Mode,
    Seconds,
    SecondsOrNone,
    UserId,
)

PREFIX = "QANAT_"
_MISSPELT = 0.9
"""How like a known name an unknown one is that was meant to be it."""
_OF_KUBERNETES = re.compile(r"_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)$")
"""What it puts into each container for each Service, be its name ours or not."""
_WHOLE_NUMBERS = (int, Count, UserId)
_NUMBERS = (Seconds, SecondsOrNone)
_KINDS: Mapping[Any, str] = {
    bool: "`true` or `false`",
    int: "a whole number",
    Count: "a whole number from 1",
    UserId: "a user id",
    Seconds: "seconds",
    SecondsOrNone: "seconds, 0 for none",
    Mode: "octal: `0600`",
    Path: "a file name",
    Path | None: "a file name",
    ListenAddress: "`host:port`",
    ListenAddress | None: "`host:port`, empty for none",
}


@dataclass(frozen=True, slots=True)
class Variable:
    """One single value of a schema, and the variable that sets it."""

    name: str
    path: tuple[str, ...]
    hint: Any

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def kind(self) -> str:
        """What may stand in it, in words."""
        if isinstance(self.hint, type) and issubclass(self.hint, enum.Enum):
            return ", ".join(f"`{word.value}`" for word in self.hint)
        return _KINDS.get(self.hint, "text")

    def value_of(self, text: str) -> object:
        """What a TOML file would hold; text that is no such value stays one, for its parser to refuse."""
        if self.hint is bool:
            return {"true": True, "false": False}.get(text.strip().lower(), text)
        if self.hint in _WHOLE_NUMBERS or self.hint in _NUMBERS:
            return _number(text, whole=self.hint in _WHOLE_NUMBERS)
        return text


@dataclass(frozen=True, slots=True)
class Unknown:
    """A variable that was meant for us and is none; ``close`` is the one it may have been meant to be."""

    name: str
    close: str


def variables_of(schema: type[Any]) -> tuple[Variable, ...]:
    """The variables of a schema, in the order of its keys."""
    return tuple(_variables(schema, ()))


def _variables(schema: type[Any], above: tuple[str, ...]) -> Iterator[Variable]:
    hints = typing.get_type_hints(schema)
    for field in attrs.fields(schema):
        hint, path = hints[field.name], (*above, field.name)
        table = table_of(hint)
        if table is not None:
            yield from _variables(table, path)
        elif typing.get_origin(hint) not in (tuple, Mapping):
            yield Variable(PREFIX + "_".join(path).upper(), path, hint)


def table_of(hint: Any) -> type[Any] | None:
    """The table that a field holds, be it optional. Addresses are written as one text."""
    if typing.get_origin(hint) is tuple:
        return None
    candidates = (hint, *typing.get_args(hint))
    return next((one for one in candidates if attrs.has(one) and one is not ListenAddress), None)


def _number(text: str, *, whole: bool) -> object:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return text


def given_in(environ: Mapping[str, str], schema: type[Any]) -> dict[Variable, str]:
    """The variables of the schema that are set."""
    return {one: environ[one.name] for one in variables_of(schema) if one.name in environ}


def lay_over(raw: Mapping[str, Any], given: Mapping[Variable, str]) -> dict[str, Any]:
    """The file's tables with what the variables say in them. Neither is changed."""
    laid = dict(raw)
    for variable, text in given.items():
        table = laid
        for section in variable.path[:-1]:
            below = table.get(section, {})
            # What is no table where one belongs stays, for the schema to refuse.
            if not isinstance(below, Mapping):
                break
            table[section] = table = dict(below)
        else:
            table[variable.path[-1]] = variable.value_of(text)
    return laid


def unknown_in(environ: Mapping[str, str], schema: type[Any]) -> list[Unknown]:
    """Variables that name a section of the schema, or nearly a key, and are none of it."""
    known = {one.name: one for one in variables_of(schema)}
    sections = {f"{PREFIX}{one.path[0].upper()}_" for one in known.values() if len(one.path) > 1}
    found = []
    for name in sorted(environ.keys() - known.keys()):
        if not name.startswith(PREFIX) or _OF_KUBERNETES.search(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT)
        if close or any(name.startswith(section) for section in sections):
            found.append(Unknown(name, close[0] if close else ""))
    return found
