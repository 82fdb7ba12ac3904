"""Write docs/limits.md from the code; with ``--check``, compare the file with the code and change nothing.

docs/limits.toml names each limit and says what happens beyond it. The value is that of the constant, and the
meaning is the docstring at the constant. A key of a configuration has its default, and the meaning of its row
in docs/install.md. A limit that the code does not have, or that has no meaning, is an error.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs

from tunnel_agent.config import AgentConfig
from tunnel_core.limits import KIB, MIB
from tunnel_server.config import ServerConfig

FILE = Path(__file__).with_suffix(".md")
SOURCE = Path(__file__).with_suffix(".toml")
REFERENCE = FILE.with_name("install.md")
ROOT = FILE.parents[1]
SCHEMAS: dict[str, type[Any]] = {"server.toml": ServerConfig, "agent.toml": AgentConfig}
_DAY_SECONDS = 24 * 3600
_HEAD = """\
# Limits

Made by `python docs/limits.py` from the code: change a value and its meaning at the constant, and what
happens beyond it in docs/limits.toml.

A stranger, a node, a user or a server can make another party hold or do no more than these limits allow.
A refusal has a reason, and [errors.md](errors.md) has the cure for each. A name that begins with `_` is a
private constant of its module. A name in brackets is a key of [server.toml](install.md#servertoml) or
[agent.toml](install.md#agenttoml).
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of docs/limits.toml, which describes the fields."""

    file: str
    name: str
    beyond: str
    shown: str = ""
    unit: str = ""
    key: str = ""


def sections() -> dict[str, list[Limit]]:
    """Return the limits of each section of the page, in their order."""
    found: dict[str, list[Limit]] = {}
    for title, rows in tomllib.loads(SOURCE.read_text()).items():
        found[title] = []
        for place, beyond in rows.items():
            file, _, name = place.partition(" ")
            rest = beyond if isinstance(beyond, dict) else {"beyond": beyond}
            found[title].append(Limit(file, name, **rest))
    return found


def text() -> str:
    """Return the whole page. Raises ``LookupError`` for limits without a value or a meaning."""
    parts, wrong = [_HEAD], []
    for title, limits in sections().items():
        parts += [
            f"## {title}\n",
            "| limit | value | what it bounds | beyond it | set in |",
            "|---|---|---|---|---|",
        ]
        for limit in limits:
            try:
                parts.append(_row(limit))
            except (LookupError, AttributeError, ImportError) as error:
                wrong.append(f"{limit.file} {limit.name}: {error!r}")
        parts.append("")
    if wrong:
        raise LookupError("\n".join(["docs/limits.toml has what the code has not:", *wrong]))
    return "\n".join(parts)


def _row(limit: Limit) -> str:
    name, value, meaning, place = (_cells_of_key if limit.file in SCHEMAS else _cells_of_constant)(limit)
    return f"| {name} | {value} | {meaning} | {limit.beyond} | {place} |"


def _cells_of_constant(limit: Limit) -> tuple[str, str, str, str]:
    module = importlib.import_module(limit.file.removesuffix(".py").replace("/", "."))
    owner, _, field = limit.name.partition(".")
    if field:
        values = {field: _default_of(getattr(module, owner), field)}
    else:
        values = {name: getattr(module, name) for name in limit.name.split(", ")}
    shown = limit.shown or ", ".join("{}" for _ in values)
    value = shown.format(*(_format(value, limit.unit or _unit_of(name)) for name, value in values.items()))
    place = f"`{limit.file}`" + (f", `{limit.key}`" if limit.key else "")
    return ", ".join(f"`{name}`" for name in values), value, _meanings(limit.file)[limit.name], place


def _default_of(owner: type[Any], field: str) -> Any:
    fields = attrs.fields_dict(owner) if attrs.has(owner) else owner.__dataclass_fields__
    return fields[field].default


def _cells_of_key(limit: Limit) -> tuple[str, str, str, str]:
    value: Any = SCHEMAS[limit.file]
    for part in limit.name.split("."):
        default = _default_of(value, part)
        value = getattr(default, "factory", default)
    section, _, name = limit.name.rpartition(".")
    shown = f"`[{section}] {name}`" if section else f"`{name}`"
    place = f"[{limit.file}](install.md#{limit.file.replace('.', '')})"
    return (
        shown,
        _format(value, limit.unit or _unit_of(name)),
        _reference()[limit.file][limit.name].strip(),
        place,
    )


@cache
def _meanings(file: str) -> dict[str, str]:
    """Return the docstring of each constant of a module, and of each field of its classes."""
    tree = ast.parse((ROOT / file).read_text())
    found = dict(_docstrings(tree.body))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}": meaning for name, meaning in _docstrings(node.body)}
    return found


def _docstrings(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for node, following in pairwise(body):
        match node, following:
            case (
                ast.Assign(targets=[target]) | ast.AnnAssign(target=target),
                ast.Expr(ast.Constant(str() as docstring)),
            ):
                yield ast.unparse(target).strip("()"), " ".join(docstring.split()).replace("``", "`")


@cache
def _reference() -> dict[str, dict[str, str]]:
    """Return what docs/install.md says of each key of each configuration."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", REFERENCE.read_text(), flags=re.MULTILINE):
        title, _, body = part.partition("\n")
        found[title] = dict(re.findall(r"^\| `([\w.]+)` \| .*? \| (.*)\|$", body, re.MULTILINE))
    return found


def _unit_of(name: str) -> str:
    parts = name.lower().split("_")
    return next(
        (unit for part, unit in (("seconds", "s"), ("bytes", "bytes"), ("days", "days")) if part in parts), ""
    )


def _format(value: Any, unit: str) -> str:
    if isinstance(value, timedelta):
        return _seconds(value.total_seconds())
    if unit.startswith("bytes"):
        return _size(value) + unit.removeprefix("bytes")
    if unit in ("s", "ms"):
        return _seconds(value / 1000 if unit == "ms" else value)
    number = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else ""
    return f"{number} {unit}".strip()


def _size(count: float) -> str:
    for unit, size in (("MiB", MIB), ("KiB", KIB)):
        if count >= size and count % size == 0:
            return f"{count // size:,} {unit}"
    return f"{count:,} B"


def _seconds(seconds: float) -> str:
    if seconds >= _DAY_SECONDS and seconds % _DAY_SECONDS == 0:
        return f"{seconds / _DAY_SECONDS:,.0f} days"
    return f"{seconds * 1000:g} ms" if 0 < seconds < 0.5 else f"{seconds:,.6g} s"


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    if arguments == ["--check"]:
        if FILE.exists() and FILE.read_text() == text():
            return 0
        sys.stderr.write(f"{FILE} is not what the code makes: run python docs/limits.py\n")
        return 1
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
