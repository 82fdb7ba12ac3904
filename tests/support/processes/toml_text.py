"""Config files written from plain dictionaries, with the part of TOML that the tests need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_toml(table: Mapping[str, Any], path: str = "") -> str:
    """Return ``table`` as TOML: plain values first, then tables, then arrays of tables."""
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if not _is_nested(value)]
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", to_toml(value, name)]
        elif _is_nested(value):
            for item in value:
                lines += ["", f"[[{name}]]", to_toml(item, name)]
    return "\n".join(lines)


def _is_nested(value: object) -> bool:
    is_tables = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    return isinstance(value, Mapping) or is_tables


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # JSON writes strings, numbers and booleans as TOML does.
    return json.dumps(value)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` applied, table by table."""
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both and isinstance(before, Mapping) else value
    return result
