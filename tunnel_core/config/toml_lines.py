"""In which line of a TOML file each key stands. No I/O.

``tomllib`` gives values without places. So the text is read statement by statement: lines are gathered until
``tomllib`` takes them as a whole. A table's head or a ``key = value`` never parses before its end, and each
begins a line of its own, so what parses first is one statement.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_STATEMENT_LINES = 300
"""Each line more means parsing the statement once more; keys behind a longer one get no line."""


def key_lines(text: str) -> dict[str, int]:
    """The line, counted from 1, of each key of a valid TOML text: ``{"agents.max": 12, "tcp#1.listen": 20}``.

    Items of lists of tables are counted from 1. Inline tables count as tables.
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
    """Each statement with the number of its first line, and whether it is a table's head."""
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
    """The table that a head begins: ``connect.unix``, or ``tcp#2`` for the second ``[[tcp]]``."""
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
