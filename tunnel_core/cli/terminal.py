"""What the terminal can show: its width, the width of a text on it, and whether it takes colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import click

_DEFAULT_COLUMNS = 80
_MAX_COLUMNS = 10_000
_INVISIBLE = frozenset({"Mn", "Me", "Cf", "Cc"})


def line_width(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the columns of a line on the terminal: ``COLUMNS``, else the terminal's own size.

    None if standard output is no terminal: scripts read whole rows, and many environments have ``COLUMNS``.
    """
    if not sys.stdout.isatty():
        return None
    return _positive(environ.get("COLUMNS", "")) or _terminal_size()[0]


def screen_lines(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many lines the terminal on standard output has."""
    return _positive(environ.get("LINES", "")) or _terminal_size()[1]


def _terminal_size() -> tuple[int, int]:
    """Columns and lines. Some terminals report 0: a serial line, or a container's before its size is set."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        columns, lines = 0, 0
    return columns or _DEFAULT_COLUMNS, lines or 24


def _positive(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) <= 9
    return min(int(text), _MAX_COLUMNS) if is_number else 0


def cell_width(text: str) -> int:
    """Return how many columns a terminal gives to the text: two to wide characters, none to accents."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    import unicodedata  # late: its tables are a megabyte, and an agent rarely shows a table

    if unicodedata.category(char) in _INVISIBLE:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def takes_escapes(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal obeys escape sequences, as far as its name tells."""
    return environ.get("TERM", "") not in ("", "dumb")


def takes_colours(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether text on a terminal may have colours and bold: not with ``NO_COLOR`` (no-color.org)."""
    return not environ.get("NO_COLOR") and takes_escapes(environ)


def styled(
    text: str, *, colour: str | None = None, bold: bool = False, environ: Mapping[str, str] = os.environ
) -> str:
    """Return the text in a colour or bold; as it is with ``NO_COLOR`` or on a terminal without either.

    ``click.echo`` takes the style away where standard output is no terminal.
    """
    if not takes_colours(environ):
        return text
    return click.style(text, fg=colour, bold=bold or None)
