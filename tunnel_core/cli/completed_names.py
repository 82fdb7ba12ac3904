"""Names that a shell completes while a person types, with a deadline, a limit, and no message.

The shell waits for the answer, and a message would disturb the command line. So after the deadline or any
error nothing is completed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio
from click.shell_completion import CompletionItem

COMPLETE_SECONDS = 1.5
_MAX_SHOWN = 200


def answer_in_time(ask: Callable[[], Awaitable[Mapping[str, Any]]]) -> Mapping[str, Any]:
    """Run ``ask`` in trio and return its answer; empty after ``COMPLETE_SECONDS`` or any error."""

    async def ask_in_time() -> Mapping[str, Any]:
        with trio.move_on_after(COMPLETE_SECONDS):
            return await ask()
        return {}

    try:
        return trio.run(ask_in_time)
    except Exception:
        return {}


def items_beginning(names: Iterable[tuple[str, str | None]], incomplete: str) -> list[CompletionItem]:
    """Return the first names that begin with ``incomplete``, each with its help."""
    items = [CompletionItem(name, help=text) for name, text in names if name.startswith(incomplete)]
    return items[:_MAX_SHOWN]
