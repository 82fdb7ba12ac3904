"""Configuration from environment variables: ``QANAT_SECTION_KEY`` sets one value of a schema. No I/O.

A variable overrides the file. Lists and tables of names come from the file only, because their entries have
an order and belong together. The caller reads the environment and passes it in.
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
    PoolBytes,
    Seconds,
    SecondsOrNone,
    UserId,
)

PREFIX = "QANAT_"
_MISSPELT = 0.9
"""Similarity from which an unknown name counts as a misspelling of a known one."""
_OF_KUBERNETES = re.compile(r"_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_\w+)?)$")
"""Variables that Kubernetes sets in each container for each Service, also for a Service named qanat."""
_WHOLE_NUMBERS = (int, Count, PoolBytes, UserId)
_NUMBERS = (Seconds, SecondsOrNone)
_KINDS: Mapping[Any, str] = {
    bool: "`true` or `false`",
    int: "a whole number",
    Count: "a whole number from 1",
    PoolBytes: "a whole number from 1048576, 0 for automatic",
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
    """One value of a schema, and the variable that sets it."""

    name: str
    path: tuple[str, ...]
    hint: Any

    @property
    def key(self) -> str:
        """Key of the value in the file, such as ``agents.max``."""
        return ".".join(self.path)

    @property
    def kind(self) -> str:
        """Allowed values, in words."""
        if isinstance(self.hint, type) and issubclass(self.hint, enum.Enum):
            return ", ".join(f"`{word.value}`" for word in self.hint)
        return _KINDS.get(self.hint, "text")

    def value_of(self, text: str) -> object:
        """Return the value that a TOML file would hold; invalid text stays text, which the parser refuses."""
        if self.hint is bool:
            return {"true": True, "false": False}.get(text.strip().lower(), text)
        if self.hint in _WHOLE_NUMBERS or self.hint in _NUMBERS:
            return _number(text, whole=self.hint in _WHOLE_NUMBERS)
        return text


@dataclass(frozen=True, slots=True)
class Unknown:
    """A variable with the prefix that no key has; ``close`` is the known name it resembles, or empty."""

    name: str
    close: str


def variables_of(schema: type[Any]) -> tuple[Variable, ...]:
    """Return the variables of a schema, in the order of its keys."""
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
    """Return the class of the table that a field holds, also an optional one; None for any other field.

    An address is a single value, although its class is one of attrs.
    """
    if typing.get_origin(hint) is tuple:
        return None
    candidates = (hint, *typing.get_args(hint))
    return next((kind for kind in candidates if attrs.has(kind) and kind is not ListenAddress), None)


def _number(text: str, *, whole: bool) -> object:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return text


def given_in(environ: Mapping[str, str], schema: type[Any]) -> dict[Variable, str]:
    """Return the variables of the schema that are set, with their texts."""
    return {variable: environ[variable.name] for variable in variables_of(schema) if variable.name in environ}


def lay_over(raw: Mapping[str, Any], given: Mapping[Variable, str]) -> dict[str, Any]:
    """Return the file's tables with the variables' values in them. The arguments are not changed."""
    merged = dict(raw)
    for variable, text in given.items():
        table = merged
        for section in variable.path[:-1]:
            inner = table.get(section, {})
            # Keep a value that stands in the place of a table, so that the schema refuses it.
            if not isinstance(inner, Mapping):
                break
            table[section] = table = dict(inner)
        else:
            table[variable.path[-1]] = variable.value_of(text)
    return merged


def unknown_in(environ: Mapping[str, str], schema: type[Any]) -> list[Unknown]:
    """Return the unknown variables that name a section of the schema, or resemble a known variable."""
    known = {variable.name: variable for variable in variables_of(schema)}
    sections = {
        f"{PREFIX}{variable.path[0].upper()}_" for variable in known.values() if len(variable.path) > 1
    }
    found = []
    for name in sorted(environ.keys() - known.keys()):
        if not name.startswith(PREFIX) or _OF_KUBERNETES.search(name):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=_MISSPELT)
        if close or any(name.startswith(section) for section in sections):
            found.append(Unknown(name, close[0] if close else ""))
    return found
