"""Properties of the terminal: its size, the width of a text on it, and whether it shows colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import click

_DEFAULT_COLUMNS = 80
_MAX_COLUMNS = 10_000
_INVISIBLE = frozenset({"Mn", "Me", "Cf", "Cc"})


def line_width(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the width of the terminal in columns: ``COLUMNS``, else the terminal's own size.

    None if standard output is no terminal, because scripts read whole rows and many environments set
    ``COLUMNS``.
    """
    if not sys.stdout.isatty():
        return None
    return _positive(environ.get("COLUMNS", "")) or _terminal_size()[0]


def screen_lines(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many lines the terminal on standard output has."""
    return _positive(environ.get("LINES", "")) or _terminal_size()[1]


def _terminal_size() -> tuple[int, int]:
    """Return columns and lines. A serial line reports 0, and so does a container's terminal at its start."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        columns, lines = 0, 0
    return columns or _DEFAULT_COLUMNS, lines or 24


def _positive(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= 9
    return min(int(text), _MAX_COLUMNS) if is_number else 0


def cell_width(text: str) -> int:
    """Return the text's width in columns: wide characters take two, and combining accents none."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    import unicodedata  # late: its tables are a megabyte, and an agent rarely shows a table

    if unicodedata.category(char) in _INVISIBLE:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def takes_escapes(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal interprets escape sequences, judged by ``TERM``."""
    return environ.get("TERM", "") not in ("", "dumb")


def takes_colours(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether text on a terminal may be coloured or bold; False with ``NO_COLOR`` (no-color.org)."""
    return not environ.get("NO_COLOR") and takes_escapes(environ)


def styled(
    text: str, *, colour: str | None = None, bold: bool = False, environ: Mapping[str, str] = os.environ
) -> str:
    """Return the text in a colour or bold; unchanged if ``takes_colours`` is False.

    ``click.echo`` removes the style if standard output is no terminal.
    """
    if not takes_colours(environ):
        return text
    return click.style(text, fg=colour, bold=bold or None)
