"""Tables: nothing is cut, no line is longer than the terminal, and no text in a cell commands it."""

from __future__ import annotations

import io
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_fences import modules
from tunnel_core.cli.tables import Table, facts_of, lay_out, lines_of, show_list
from tunnel_core.cli.terminal import cell_width, line_width, screen_lines, styled

NODES = ("node", "state", "rtt", "streams", "services")
SHORT = ("edge1", "attached 3m", "42 ms", "2", "web (http)")
LONG_NAME = "x" * 253
SERIAL = "5d" * 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_pipe_a_row_is_a_line_however_long() -> None:
    head, first, second = lay_out(NODES, [SHORT, (LONG_NAME, *SHORT[1:])], None)
    assert head.split() == ["NODE", "STATE", "RTT", "STREAMS", "SERVICES"]
    assert head.index("STATE") == first.index("attached") == second.index("attached")


@pytest.mark.parametrize("width", [None, 40, 80, 200])
def test_the_header_is_the_same_in_a_pipe_and_on_a_terminal(width: int | None) -> None:
    head = lay_out(NODES, [SHORT], width)[0]
    assert head.split() == ["NODE", "STATE", "RTT", "STREAMS", "SERVICES"]


def test_a_long_name_pushes_only_its_own_row() -> None:
    lines = lay_out(NODES, [SHORT, (LONG_NAME, *SHORT[1:])], 80)
    head, first, name, rest = lines
    assert name == LONG_NAME
    assert head.index("STATE") == first.index("attached") == rest.index("attached")
    assert first.index("attached") == len("edge1  ")


def test_the_last_column_flows_below_itself() -> None:
    services = ", ".join(f"service-{number} (http)" for number in range(6))
    lines = lay_out(NODES, [(*SHORT[:4], services)], 80)
    assert " ".join(line[lines[0].index("SERVICES") :].strip() for line in lines[1:]) == services
    assert all(len(line) <= 80 for line in lines)


def test_a_long_name_makes_no_other_column_narrower() -> None:
    columns = ("time", "what", "whom", "by", "detail")
    time, by = "2026-11-29 16:22:22Z", "127.0.0.1:40084"
    rows = [(time, "token_created", name, by, "for one node") for name in ("edge1", LONG_NAME)]
    head, first, *_ = lay_out(columns, rows, 80)
    assert first.startswith(f"{time}  token_created  edge1  {by}")
    assert head.index("WHAT") == len(time) + 2


def test_facts_go_on_below_themselves() -> None:
    facts = [("state", "gone"), ("since", ""), ("certificate", f"until tomorrow, serial {SERIAL}")]
    assert facts_of(facts, 13, 40) == [
        "state        gone",
        "certificate  until tomorrow, serial",
        " " * 13 + SERIAL,
    ]
    assert facts_of(facts, 13, None)[1] == f"certificate  until tomorrow, serial {SERIAL}"


def test_a_word_that_is_too_long_is_not_broken() -> None:
    lines = lay_out(("time", "what", "whom", "by", "detail"), [("t" * 20, "a", "b", "c", SERIAL)], 40)
    assert SERIAL in [line.strip() for line in lines]


def test_a_terminal_that_is_too_narrow_for_the_names_gets_them_in_lines() -> None:
    lines = lay_out(NODES, [SHORT], 20)
    assert " ".join(lines).split() == [
        *("NODE", "STATE", "RTT", "STREAMS", "SERVICES"),
        *("edge1", "attached", "3m", "42", "ms", "2", "web", "(http)"),
    ]


def test_wide_characters_take_two_columns_and_accents_none() -> None:
    assert (cell_width("edge1"), cell_width("数据"), cell_width("e\u0301")) == (5, 4, 1)
    head, first, second = lay_out(("name", "state"), [("数据", "gone"), ("e\u0301ge", "gone")], 80)
    assert cell_width(first.partition("gone")[0]) == cell_width(second.partition("gone")[0])
    assert head.index("STATE") == 6


_cells = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp")), max_size=60)
_rows = st.lists(st.tuples(*[_cells.map(lambda text: " ".join(text.split()) or "-")] * 4), min_size=1)


@given(rows=_rows, width=st.integers(10, 120))
def test_nothing_is_cut_and_only_a_long_word_is_longer_than_a_line(
    rows: list[tuple[str, str, str, str]], width: int
) -> None:
    lines = lay_out(("name", "state", "serial", "detail"), rows, width)
    shown = "".join("".join(lines).split())
    for row in rows:
        for cell in row:
            assert "".join(cell.split()) in shown
    *fixed, _ = zip(*rows, strict=True)
    pieces = {cell for column in fixed for cell in column} | {
        word for row in rows for cell in row for word in cell.split()
    }
    for line in lines:
        is_one_piece = any(piece in line and 4 + cell_width(piece) > width for piece in pieces)
        assert cell_width(line) <= width or is_one_piece


def shown(monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, ...]], wide: bool = False) -> str:
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    show_list({}, Table(("node", "state"), ("alias",)), rows, "nothing", as_json=False, wide=wide)
    return screen.getvalue()


def test_a_cells_text_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, [("[red]edge1[/]", "\x1b[2Jgone\r\n\u202e", "a"), ("edge2", "", "b")])
    assert "[red]edge1[/]" in text
    assert "?[2Jgone???" in text
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "edge2          -"


def test_the_rest_is_there_with_wide_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ALIAS" not in shown(monkeypatch, [("a", "b", "c")])
    assert shown(monkeypatch, [("a", "b", "c")], wide=True).splitlines()[0] == "NODE  STATE  ALIAS"


def test_an_empty_table_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, []) == "nothing\n"


@pytest.mark.parametrize(
    ("columns", "width"),
    [("40", 40), ("", 80), ("0", 80), ("wide", 80), ("-5", 80), ("\u0663", 80), ("9" * 9, 10_000)],
)
def test_the_width_is_that_of_columns_or_the_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert line_width({"COLUMNS": columns}) == width
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert line_width({"COLUMNS": columns}) is None


def test_a_terminal_that_reports_zero_has_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: (0, 0))
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setattr(screen, "fileno", lambda: 1)
    assert (line_width({}), screen_lines({})) == (80, 24)


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}, {"TERM": ""}, {}])
def test_no_color_and_dumb_terminals_get_no_bold_either(environ: dict[str, str]) -> None:
    assert styled("edge1", colour="red", bold=True, environ=environ) == "edge1"


def test_other_terminals_get_colour_and_bold() -> None:
    assert styled("a", colour="red", bold=True, environ={"TERM": "xterm", "NO_COLOR": ""}) != "a"
    assert styled("a", bold=True, environ={"TERM": "xterm"}) == "\x1b[1ma\x1b[0m"


def test_a_table_of_many_rows_is_quick() -> None:
    rows = [(f"edge{number}", *SHORT[1:]) for number in range(10_000)]
    assert len(lines_of(Table(NODES), rows)) == 10_001


@pytest.mark.parametrize(
    "module", sorted(modules().keys() - {"tunnel_core.cli.terminal", "tunnel_core.telemetry.logs"})
)
def test_no_other_module_styles_text(module: str) -> None:
    """Each such module would have to check NO_COLOR and dumb terminals, as log lines do."""
    assert not re.search(r"click\.(style|secho)|\\x1b\[[0-9;]*m|\\033", modules()[module].read_text())
