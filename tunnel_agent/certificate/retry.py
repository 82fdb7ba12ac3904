"""Asks a server again that is busy or lost the connection: a fleet that comes at once makes it so."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from tunnel_agent.certificate.est_client import ServerRefused
from tunnel_agent.network.server_path import ConnectionLost

T = TypeVar("T")

_BUSY_SECONDS = 300.0
"""How long a server that says when to come back is asked again: thousands before us may have their turn."""
_LOST_PAUSE_SECONDS = 0.3
_LOST_TRIES = 5
"""A server that takes no more connections from one address ends them without a word."""


async def retry_while_busy(ask: Callable[[], Awaitable[T]]) -> T:
    """What ``ask`` gives in the end; else its last exception. Only for what may be repeated."""
    give_up, lost = trio.current_time() + _BUSY_SECONDS, 0
    while True:
        try:
            return await ask()
        except ServerRefused as refused:
            wait = refused.retry_after_seconds
            if wait is None or trio.current_time() + wait > give_up:
                raise
            wait += random.random()  # noqa: S311 - it is told in whole seconds; spreads load
        except ConnectionLost:
            wait, lost = _LOST_PAUSE_SECONDS * 2**lost * random.uniform(1, 1.5), lost + 1  # noqa: S311
            if lost == _LOST_TRIES:
                raise
        await trio.sleep(wait)
