"""Rows for people: a rich table on a terminal, aligned columns anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from tunnel_core.command_line import print_json, printable

Row = Sequence[str]
_GAP = "  "
_EMPTY = "-"


def show_list(
    answer: Mapping[str, Any], columns: Row, rows: Iterable[Row], nothing: str, *, as_json: bool
) -> None:
    """What a command that lists prints: the answer as it is, or its rows, or that there are none.

    ``rows`` are made only if they are shown.
    """
    if as_json:
        print_json(answer)
    elif made := list(rows):
        show(columns, made)
    else:
        click.echo(nothing)


def show(columns: Row, rows: Sequence[Row]) -> None:
    """Prints rows under their column names. What others wrote in them cannot command the terminal."""
    clean = [[printable(cell) or _EMPTY for cell in row] for row in rows]
    if sys.stdout.isatty():
        _show_rich(columns, clean)
    else:
        click.echo("\n".join(aligned(columns, clean)))


def aligned(columns: Row, rows: Sequence[Row]) -> list[str]:
    """Lines with every column as wide as its widest cell, fit for awk and grep."""
    lines = [[name.upper() for name in columns], *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _show_rich(columns: Row, rows: Sequence[Row]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
