"""Tables for people, alike in every command of every program.

1. The header is one line of names, in a pipe and on a terminal alike.
2. In a pipe, and with ``--wide``, each row is one line of any length, for grep and awk.
3. On a terminal, no line is longer than the terminal is wide, and no text is cut. After a cell that is too
   long for its column, the row continues on the next line, below its own names. The last column wraps over
   several lines. A word is never broken, so a serial can be copied; the terminal wraps a word longer than a
   line.
4. On a terminal too narrow for the names, the header and each row take several lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from tunnel_core.cli.command_line import print_json, printable
from tunnel_core.cli.terminal import cell_width, line_width

Row = Sequence[str]
_GAP = "  "
_EMPTY = "-"
_INDENT = 4
_MIN_WRAP_WIDTH = 24
"""Width that the last cell needs to wrap in its column; with less it begins on a line of its own."""


@dataclass(frozen=True, slots=True)
class Table:
    """Names of the columns. Only ``--wide`` shows the columns ``more``; rows have cells for all columns."""

    columns: tuple[str, ...]
    more: tuple[str, ...] = ()


wide_option = click.option("--wide", is_flag=True, help="Show every column, and each row on one line.")


def show_list(
    answer: Mapping[str, Any],
    table: Table,
    rows: Iterable[Row],
    nothing: str,
    *,
    as_json: bool,
    wide: bool = False,
) -> None:
    """Print the result of a list command: ``answer`` as JSON, or its rows, or the sentence ``nothing``.

    ``rows`` is consumed only if the rows are printed.
    """
    if as_json:
        print_json(answer)
    elif cells := list(rows):
        click.echo("\n".join(lines_of(table, cells, wide=wide)))
    else:
        click.echo(nothing)


def lines_of(table: Table, rows: Sequence[Row], *, wide: bool = False) -> list[str]:
    """Return the lines of a table for the current standard output.

    Control characters in cells are replaced, so that a stranger's text cannot control the terminal.
    """
    names = (*table.columns, *table.more) if wide else table.columns
    clean = [[printable(cell) or _EMPTY for cell in row[: len(names)]] for row in rows]
    return lay_out(names, clean, None if wide else line_width())


def facts_of(facts: Iterable[tuple[str, str]], stop: int, width: int | None) -> list[str]:
    """Return a line for each fact with a text: its name, and the text from column ``stop`` on.

    With a ``width``, a longer text continues on the next line at ``stop``. A word is never broken.
    """
    lines = list[str]()
    for name, text in facts:
        if text:
            first, *more = flowed(printable(text), stop, width)
            lines += [name.ljust(stop) + first.lstrip(), *more]
    return lines


def flowed(text: str, indent: int, width: int | None) -> list[str]:
    """Return the text in lines from column ``indent`` to ``width``; with None, in one line."""
    pieces = [text] if width is None else _wrapped(text, max(1, width - indent))
    return [" " * indent + piece for piece in pieces]


def lay_out(names: Row, rows: Sequence[Row], width: int | None) -> list[str]:
    """Return header and rows as lines; if ``width`` is None, each row is one line. No I/O."""
    header = [name.upper() for name in names]
    if width is None:
        widths = _natural([header, *rows])
        return ["".join(_at_stops(row, widths)) for row in (header, *rows)]
    groups = list(_groups(header, width))
    widths_of = [_fitted([header, *rows], group, width) for group in groups]
    return [
        line
        for row in (header, *rows)
        for group, widths in zip(groups, widths_of, strict=True)
        for line in _folded([row[index] for index in group], widths, width, group[0] > 0)
    ]


def _natural(rows: Sequence[Row]) -> list[int]:
    """Return the width of each column's widest cell."""
    return [max(map(cell_width, column)) for column in zip(*rows, strict=True)]


def _at_stops(row: Row, widths: Sequence[int]) -> Iterator[str]:
    *cells, last = row
    for cell, width in zip(cells, widths, strict=False):
        yield cell + " " * (width - cell_width(cell)) + _GAP
    yield last


def _groups(header: Row, width: int) -> Iterator[list[int]]:
    """Yield the columns of each header line: one group, unless the terminal is very narrow."""
    group, used = list[int](), 0
    for index, name in enumerate(header):
        needed = cell_width(name) + len(_GAP)
        if group and used + needed - len(_GAP) > width:
            yield group
            group, used = [], _INDENT
        group.append(index)
        used += needed
    yield group


def _fitted(rows: Sequence[Row], group: Sequence[int], width: int) -> list[int]:
    """Return the widths of a group's columns but the last, so that the last column's name still fits.

    The widest column shrinks first, down to its name, and its widest cells overflow. So one long cell neither
    moves the other columns apart nor makes them narrower.
    """
    columns = [[cell_width(row[index]) for row in rows] for index in group]
    names = [cells[0] for cells in columns]
    room = width - (_INDENT if group[0] else 0) - len(_GAP) * (len(group) - 1) - names[-1]
    fitting = [sorted({width for width in cells if width >= cells[0]}) for cells in columns[:-1]]
    while sum(each[-1] for each in fitting) > room and (wide := [each for each in fitting if len(each) > 1]):
        max(wide, key=lambda each: each[-1]).pop()
    return [each[-1] for each in fitting]


def _folded(row: Row, widths: Sequence[int], width: int, is_below: bool) -> Iterator[str]:
    """Yield the lines of one row, or of its part in one group."""
    *cells, last = row
    stop = _INDENT if is_below else 0
    line = ""
    for cell, own in zip(cells, widths, strict=True):
        if line and stop + cell_width(cell) > width:
            yield line
            line = " " * min(_INDENT, stop) + cell
        else:
            line, full = _put(line, stop, cell)
            yield from full
        stop += own + len(_GAP)
    yield from _wrap_last(line, stop, last, width)


def _wrap_last(line: str, stop: int, text: str, width: int) -> Iterator[str]:
    """Yield the line with the last cell, in as many lines as the cell takes."""
    room = width - stop
    widest_word = max(map(cell_width, text.split(" ")))
    if cell_width(text) > room and (room < _MIN_WRAP_WIDTH or widest_word > room):
        if line:
            yield line
        line, stop = "", min(_INDENT, stop)
    for piece in _wrapped(text, width - stop):
        line, full = _put(line, stop, piece)
        yield from full
    yield line


def _put(line: str, stop: int, cell: str) -> tuple[str, list[str]]:
    """Return the line with the cell at ``stop``; if the line is too long, a new line and the full one."""
    at = cell_width(line)
    if line and at > stop - len(_GAP):
        return " " * stop + cell, [line]
    return line + " " * (stop - at) + cell, []


def _wrapped(text: str, room: int) -> Iterator[str]:
    first, *words = text.split(" ")
    line = first
    for word in words:
        if cell_width(line) + 1 + cell_width(word) > room:
            yield line
            line = word
        else:
            line = f"{line} {word}"
    yield line
