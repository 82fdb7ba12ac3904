"""Line numbers of the keys of a TOML file. No I/O.

``tomllib`` returns values without their lines. So the text is parsed statement by statement: lines are joined
until ``tomllib`` accepts them. The method works because a table's head or a ``key = value`` begins a line of
its own and does not parse before its end.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_STATEMENT_LINES = 300
"""Limit, because each line of a statement parses it once more. Keys after a longer statement get no line."""


def key_lines(text: str) -> dict[str, int]:
    """Return the line of each key of a valid TOML text, such as ``{"agents.max": 12, "tcp#1.listen": 20}``.

    Lines and the items of lists of tables are counted from 1. Inline tables count as tables.
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, statement, is_head in _statements(text):
        if is_head:
            table = _enter(statement, counts)
            lines.setdefault(table, number)
            continue
        for key in _keys(statement, table):
            lines.setdefault(key, number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Yield each statement with the number of its first line, and whether it is a table's head."""
    gathered: list[str] = []
    begin = 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not gathered:
            begin = number
            if not line.strip() or line.lstrip().startswith("#"):
                continue
        gathered.append(line)
        try:
            parsed = tomllib.loads("\n".join(gathered))
        except tomllib.TOMLDecodeError:
            if len(gathered) >= _MAX_STATEMENT_LINES:
                return
            continue
        yield begin, parsed, gathered[0].lstrip().startswith("[")
        gathered = []


def _enter(head: Mapping[str, Any], counts: dict[str, int]) -> str:
    """Return the table that a head begins: ``connect.unix``, or ``tcp#2`` for the second ``[[tcp]]``."""
    path = ""
    inner: Any = head
    while isinstance(inner, dict) and inner:
        [(name, inner)] = inner.items()
        path = f"{path}.{name}".lstrip(".")
        if isinstance(inner, list):
            counts[path] = counts.get(path, 0) + 1
            inner = inner[0]
        if path in counts:
            path = f"{path}#{counts[path]}"
    return path


def _keys(value: object, prefix: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            key = f"{prefix}.{name}".lstrip(".")
            yield key
            yield from _keys(inner, key)
    elif isinstance(value, list):
        for index, item in enumerate(value, start=1):
            if isinstance(item, dict):
                yield from _keys(item, f"{prefix}#{index}")
