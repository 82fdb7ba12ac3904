"""Rows for people, the same in every command of every program.

1. The header is one line of names, in a pipe and on a terminal alike.
2. In a pipe, and with ``--wide``, a row is one line, however long: fit for grep and awk.
3. On a terminal no line is longer than it, and nothing is cut: a cell that is too long for its column sends
   the rest of its row to the next line, below its own names. The last column flows over several lines.
   A word is never broken, so a serial can be copied; the terminal wraps a word that is longer than a line.
4. A terminal too narrow for the names themselves gets them, and each row, in several lines.
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
_LEAST_FLOW = 24
"""Columns that the last cell needs to flow in; with fewer it begins on a line of its own."""


@dataclass(frozen=True, slots=True)
class Table:
    """The names of the columns. ``more`` are shown with ``--wide`` alone; rows have cells for all."""

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
    """Print what a command that lists prints: the answer as it is, or its rows, or that there are none.

    ``rows`` are made only if they are shown.
    """
    if as_json:
        print_json(answer)
    elif made := list(rows):
        click.echo("\n".join(lines_of(table, made, wide=wide)))
    else:
        click.echo(nothing)


def lines_of(table: Table, rows: Sequence[Row], *, wide: bool = False) -> list[str]:
    """Return the lines of a table for standard output as it is now.

    What others wrote in the cells cannot command the terminal: control characters are replaced.
    """
    names = (*table.columns, *table.more) if wide else table.columns
    clean = [[printable(cell) or _EMPTY for cell in row[: len(names)]] for row in rows]
    return lay_out(names, clean, None if wide else line_width())


def facts_of(facts: Iterable[tuple[str, str]], stop: int, width: int | None) -> list[str]:
    """Return a line for each fact that is known: its name, and its text from column ``stop`` on.

    With a ``width`` a text goes on below itself rather than beyond. A word is never broken.
    """
    lines = list[str]()
    for name, text in facts:
        if text:
            first, *more = flowed(printable(text), stop, width)
            lines += [name.ljust(stop) + first.lstrip(), *more]
    return lines


def flowed(text: str, indent: int, width: int | None) -> list[str]:
    """Return the text in lines that begin at column ``indent`` and end before ``width``. None: one line."""
    pieces = [text] if width is None else _wrapped(text, max(1, width - indent))
    return [" " * indent + piece for piece in pieces]


def lay_out(names: Row, rows: Sequence[Row], width: int | None) -> list[str]:
    """Return header and rows as lines. ``width`` None: each row is one line. Pure."""
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
    """Each column as wide as its widest cell."""
    return [max(map(cell_width, column)) for column in zip(*rows, strict=True)]


def _at_stops(row: Row, widths: Sequence[int]) -> Iterator[str]:
    *cells, last = row
    for cell, width in zip(cells, widths, strict=False):
        yield cell + " " * (width - cell_width(cell)) + _GAP
    yield last


def _groups(header: Row, width: int) -> Iterator[list[int]]:
    """The columns by the lines that their names take: one group, unless the terminal is very narrow."""
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
    """The widths of a group's columns but the last, so that the name of the last still fits.

    The widest column gives way first, by its widest cells, down to its name: these cells overflow. So one
    long name neither pushes the other columns apart nor makes them narrower.
    """
    columns = [[cell_width(row[index]) for row in rows] for index in group]
    names = [cells[0] for cells in columns]
    room = width - (_INDENT if group[0] else 0) - len(_GAP) * (len(group) - 1) - names[-1]
    fitting = [sorted({one for one in cells if one >= cells[0]}) for cells in columns[:-1]]
    while sum(each[-1] for each in fitting) > room and (wide := [each for each in fitting if len(each) > 1]):
        max(wide, key=lambda each: each[-1]).pop()
    return [each[-1] for each in fitting]


def _folded(row: Row, widths: Sequence[int], width: int, is_below: bool) -> Iterator[str]:
    """The lines of one row, or of its part in one group."""
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
    yield from _flow(line, stop, last, width)


def _flow(line: str, stop: int, text: str, width: int) -> Iterator[str]:
    """The last cell behind the line, in as many lines as it takes."""
    room = width - stop
    widest_word = max(map(cell_width, text.split(" ")))
    if cell_width(text) > room and (room < _LEAST_FLOW or widest_word > room):
        if line:
            yield line
        line, stop = "", min(_INDENT, stop)
    for piece in _wrapped(text, width - stop):
        line, full = _put(line, stop, piece)
        yield from full
    yield line


def _put(line: str, stop: int, cell: str) -> tuple[str, list[str]]:
    """The line with the cell at its stop, or a new line and the one before if the stop was passed."""
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
