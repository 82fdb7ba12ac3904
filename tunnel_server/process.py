"""The server as a process: start, signals and shutdown."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable

import trio

from tunnel_core.runtime.ending import has_terminal
from tunnel_core.runtime.memory_return import find_returns, return_memory
from tunnel_core.telemetry.batched_logs import start_log_batching
from tunnel_server.app import CannotStart, Server, open_server
from tunnel_server.config import ServerConfig
from tunnel_server.entrances.open_listeners import Addresses

_log = logging.getLogger("qanat.server")

_SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


async def run_server(config: ServerConfig, on_ready: Callable[[Addresses], None]) -> bool:
    """Serve until SIGTERM or SIGINT, and then drain. SIGHUP reloads certificates and roots.

    ``on_ready`` is called when all listeners are open. The end of the terminal in which the server was
    started also drains it.

    Returns True after a complete drain, and False if a second signal interrupted the drain. Raises
    ``CannotStart``, with nothing left open. Any other exception is a bug that ended the server.
    """
    start_log_batching()
    failure: CannotStart | None = None
    drained = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(return_memory, find_returns())
        try:
            drained = await _serve(config, nursery, on_ready)
        except CannotStart as error:  # Raised after the nursery, which would wrap it in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return drained


async def _serve(config: ServerConfig, nursery: trio.Nursery, on_ready: Callable[[Addresses], None]) -> bool:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with open_server(config, nursery) as server, server.listening() as addresses:
            on_ready(addresses)
            await _wait_stop(server, signals)
            return await _drain(server, signals)


async def _wait_stop(server: Server, signals: AsyncIterator[int]) -> None:
    """Wait for a signal that ends the server. SIGHUP reloads, unless the server's terminal has closed."""
    had_terminal = has_terminal()
    async for number in signals:
        if number != signal.SIGHUP or (had_terminal and not has_terminal()):
            _log.info("%s: draining", signal.Signals(number).name)
            return
        server.reload()


async def _drain(server: Server, signals: AsyncIterator[int]) -> bool:
    """Drain until a second signal. Return whether the drain is complete."""
    drained = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
        await server.drain()
        drained = True
        nursery.cancel_scope.cancel()
    return drained


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            _log.warning("second signal: stopping at once")
            scope.cancel()
