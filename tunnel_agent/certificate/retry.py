"""Retry a request while the server is busy or closes connections, as when a whole fleet asks at once."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from tunnel_agent.certificate.est_client import ServerRefused
from tunnel_agent.network.server_path import ConnectionLost

T = TypeVar("T")

_BUSY_SECONDS = 300.0
"""How long a request is retried after ``Retry-After``, because thousands of nodes may be first."""
_LOST_PAUSE_SECONDS = 0.3
_LOST_TRIES = 5
"""How often a request is retried after a lost connection. A server that accepts no more connections from an
address closes them without a reason."""


async def retry_while_busy(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the result of ``ask``, or raise its last exception. ``ask`` must be safe to repeat."""
    give_up_at, lost = trio.current_time() + _BUSY_SECONDS, 0
    while True:
        try:
            return await ask()
        except ServerRefused as refused:
            wait = refused.retry_after_seconds
            if wait is None or trio.current_time() + wait > give_up_at:
                raise
            wait += random.random()  # noqa: S311 - Retry-After has whole seconds; spreads load
        except ConnectionLost:
            wait, lost = _LOST_PAUSE_SECONDS * 2**lost * random.uniform(1, 1.5), lost + 1  # noqa: S311
            if lost == _LOST_TRIES:
                raise
        await trio.sleep(wait)
