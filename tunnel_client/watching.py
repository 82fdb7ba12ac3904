"""``qanat nodes --watch``: a table that refreshes in place on a terminal, or a line per change in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import click
import trio

from tunnel_client.api import ask_nodes
from tunnel_client.dial import Dialer, ServerUnreachable
from tunnel_client.node_facts import NODES, Item, items_of, node_row, state_of, text_of
from tunnel_core.cli.command_line import printable
from tunnel_core.cli.tables import lines_of
from tunnel_core.cli.terminal import cell_width, line_width, screen_lines, takes_escapes
from tunnel_core.humanize import as_moment
from tunnel_core.runtime.ending import STANDARD_OUTPUT, wait_writable

REFRESH_SECONDS = 2.0
_SHARE = 10
"""Pause in multiples of the time for one answer, because the list of a large fleet costs the server time."""
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


class View(Protocol):
    """Display of answers. ``trouble`` is the cause of a missing answer; ``nodes`` are then the last known."""

    def show(self, nodes: Sequence[Item], trouble: str) -> None: ...


async def watch_nodes(dialer: Dialer, name: str = "", *, wide: bool = False, as_json: bool = False) -> None:
    """Show the nodes, or one by name or alias, until cancelled. Raises ``Refused``."""
    in_place = sys.stdout.isatty() and takes_escapes() and not as_json
    if not in_place:
        await _refresh(dialer, name, ChangeView(as_json=as_json))
        return
    screen = ScreenView(wide=wide)
    try:
        with _alternate_screen():
            await _refresh(dialer, name, screen)
    finally:
        screen.leave()


async def _refresh(dialer: Dialer, name: str, view: View) -> None:
    nodes: list[Item] = []
    while True:
        began, trouble = trio.current_time(), ""
        try:
            nodes = _chosen(await ask_nodes(dialer), name)
        except ServerUnreachable as error:
            trouble = str(error)
        await wait_writable(STANDARD_OUTPUT)
        view.show(nodes, trouble)
        await trio.sleep(max(REFRESH_SECONDS, _SHARE * (trio.current_time() - began)))


def _chosen(answer: Mapping[str, Any], name: str) -> list[Item]:
    nodes = items_of(answer, "nodes")
    return [node for node in nodes if not name or name in (node.get("name"), node.get("alias"))]


@contextmanager
def _alternate_screen() -> Iterator[None]:
    click.echo(_ENTER, nl=False)
    try:
        yield
    finally:
        click.echo(_LEAVE, nl=False)


class ScreenView:
    """Table that refreshes in place. At the end the last table stays on the terminal."""

    def __init__(self, *, wide: bool) -> None:
        self._wide = wide
        self._last: list[str] = []

    def show(self, nodes: Sequence[Item], trouble: str) -> None:
        count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        head = f"{as_moment(datetime.now(UTC))}  {count}; Ctrl-C ends this"
        rows = [node_row(node) for node in nodes]
        table = lines_of(NODES, rows, wide=self._wide) if rows else ["No such node is known."]
        warning = [printable(f"{trouble}; retrying. Last known state:")] if trouble else []
        self._last = [head, *warning, "", *table]
        click.echo(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in self._fitting_lines()), nl=False)
        click.echo(_CLEAR_BELOW, nl=False)

    def _fitting_lines(self) -> list[str]:
        """Return the first lines, as many as fit the screen. A long line takes several screen lines."""
        room, width = max(1, screen_lines() - 2), line_width() or 80
        for count, line in enumerate(self._last):
            room -= max(1, -(-cell_width(line) // width))
            if room < 0:
                return [*self._last[:count], f"... {len(self._last) - count} more lines: qanat nodes"]
        return self._last

    def leave(self) -> None:
        if self._last:
            click.echo("\n".join(self._fitting_lines()))


class ChangeView:
    """One line for each node that is new, forgotten, or has a new state."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._known: dict[str, object] = {}
        self._is_away = False

    def show(self, nodes: Sequence[Item], trouble: str) -> None:
        if bool(trouble) != self._is_away:
            self._is_away = bool(trouble)
            sentence = f"{trouble}; retrying" if trouble else "the server answers again"
            click.echo(f"qanat: {printable(sentence)}", err=True)
        if trouble:
            return
        found = {text_of(node, "name"): node for node in nodes}
        for name, node in found.items():
            if self._known.get(name) != (fields := _reported_fields(node)):
                self._known[name] = fields
                self._print(node, state_of(node))
        for name in self._known.keys() - found.keys():
            del self._known[name]
            self._print({"name": name, "state": None}, "forgotten")

    def _print(self, node: Item, state: str) -> None:
        if self._as_json:
            click.echo(json.dumps(node))
        else:
            moment = as_moment(datetime.now(UTC))
            click.echo(f"{moment}  {printable(text_of(node, 'name')):<16}  {printable(state)}")


def _reported_fields(node: Item) -> tuple[str, ...]:
    """Return the fields whose change is reported, without ages and counters."""
    return tuple(text_of(node, key) for key in ("state", "since", "last_reason", "duplicate", "address"))
