"""The effective configuration: each key with its value, and the source of that value. No I/O.

``as_toml`` returns it as a configuration file with the same meaning, which can be read, compared and used.
"""

from __future__ import annotations

import enum
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs

from tunnel_core.config.types import ListenAddress, Mode, Secret

_COMMENT_COLUMN = 44


class Origin(enum.Enum):
    """Kind of source that a value comes from."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    ARGUMENT = "argument"


@dataclass(frozen=True, slots=True)
class Given:
    """The sources that override the defaults: a file, variables over the file, and arguments over both.

    ``variables`` and ``arguments`` map a key to the name of the variable or option. ``lines`` maps a key to
    its line in the file, if the line is known.
    """

    file: Path
    raw: Mapping[str, Any]
    lines: Mapping[str, int]
    variables: Mapping[str, str]
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """One key, such as ``agents.max`` or ``tcp#1.listen``, and its TOML value; None for a secret.

    ``place`` is a file with a line, a variable, or an option; empty for a default.
    """

    key: str
    value: object
    origin: Origin
    place: str = ""

    def as_json(self) -> dict[str, object]:
        """Return the setting as a JSON object. A secret has no value in it."""
        json_object = {"key": self.key, "value": self.value, "from": self.origin.value}
        return {**json_object, "place": self.place or None, "secret": self.value is None}


def settings_of(config: Any, given: Given) -> list[Setting]:
    """Return all settings of a configuration object, in the order of its keys, without absent tables."""
    return list(_table(config, given.raw, "", given))


def _table(table: Any, raw: object, prefix: str, given: Given) -> Iterator[Setting]:
    hints = typing.get_type_hints(type(table))
    for field in attrs.fields(type(table)):
        key = f"{prefix}.{field.name}".lstrip(".")
        is_given = isinstance(raw, Mapping) and field.name in raw
        inner = raw[field.name] if isinstance(raw, Mapping) and is_given else None
        hint = hints[field.name]
        yield from _value(getattr(table, field.name), hint, inner, key, given, is_given=is_given)


def _value(
    value: object, hint: Any, raw: object, key: str, given: Given, *, is_given: bool
) -> Iterator[Setting]:
    if _is_table(type(value)):
        yield from _table(value, raw, key, given)
    elif value is None and any(map(_is_table, typing.get_args(hint))):
        return
    elif isinstance(value, tuple) and value and _is_table(type(value[0])):
        rows = raw if isinstance(raw, Sequence) else [None] * len(value)
        for number, (item, row) in enumerate(zip(value, rows, strict=True), start=1):
            yield from _table(item, row, f"{key}#{number}", given)
    elif isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield _setting(f"{key}.{name}", _plain(item, None), given, is_given=is_given)
    else:
        yield _setting(key, _plain(value, hint), given, is_given=is_given)


def _is_table(kind: Any) -> bool:
    return attrs.has(kind) and kind is not ListenAddress


def _setting(key: str, value: object, given: Given, *, is_given: bool) -> Setting:
    if option := given.arguments.get(key):
        return Setting(key, value, Origin.ARGUMENT, option)
    if variable := given.variables.get(key):
        return Setting(key, value, Origin.ENVIRONMENT, variable)
    if not is_given:
        return Setting(key, value, Origin.DEFAULT)
    line = given.lines.get(key)
    return Setting(key, value, Origin.FILE, f"{given.file}:{line}" if line else str(given.file))


def _plain(value: object, hint: Any) -> object:
    """Return ``value`` as a TOML file holds it; None for a secret that is set."""
    match value:
        case None:
            return ""
        case Secret():
            return None if value else ""
        case enum.Enum():
            return value.value
        case bool() | str():
            return value
        case int() if hint is Mode:
            return f"{value:04o}"
        case float() if value.is_integer():
            return int(value)
        case int() | float():
            return value
        case tuple():
            return [_plain(item, None) for item in value]
        case Mapping():
            return {}
        case _:
            return str(value)


def as_json(settings: Sequence[Setting], file: Path) -> dict[str, object]:
    """Return the settings as a JSON object, for scripts."""
    return {"file": str(file), "settings": [setting.as_json() for setting in settings]}


def as_toml(settings: Sequence[Setting], file: Path) -> str:
    """Return a file with the same meaning, with a comment after each key that names the value's source."""
    tables: dict[str, list[Setting]] = {"": []}
    for setting in settings:
        tables.setdefault(setting.key.rpartition(".")[0], []).append(setting)
    lines = [f"# {file}, with defaults, environment variables and options"]
    for table, own in tables.items():
        lines += ["", _head(table)] if table else []
        lines += [_line(setting, file) for setting in own]
    return "\n".join(lines)


def _head(table: str) -> str:
    name, hash_sign, _ = table.rpartition("#")
    return f"[[{name}]]" if hash_sign and "." not in table.rpartition("#")[2] else f"[{table}]"


def _line(setting: Setting, file: Path) -> str:
    name = setting.key.rpartition(".")[2]
    text = f"{name} = {_toml(setting.value)}" if setting.value is not None else f"# {name} is set, not shown"
    place = setting.place.replace(str(file), file.name) or setting.origin.value
    return f"{text:<{_COMMENT_COLUMN}}  # {place}"


def _toml(value: object) -> str:
    # JSON of strings, numbers, booleans and lists is valid TOML, if surrogates are not escaped and DEL is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
