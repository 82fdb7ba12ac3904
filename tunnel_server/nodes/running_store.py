"""The store in a running server: open for as long as the server runs, and fed with the events of nodes.

At the start the nodes that the store knows become nodes of the registry, and the newest stored events become
those of the registry's log. ``EventWriter`` then stores the events of this run.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import trio

from tunnel_core.reasons import Reason
from tunnel_server.accounting.event_writer import EventWriter
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.config import ServerConfig
from tunnel_server.events.event_log import MAX_EVENTS, NodeEvent
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.database import StoreError
from tunnel_server.store.lock import wait_hold_store
from tunnel_server.store.settings import settings_of
from tunnel_server.store.store import Store, open_store

_LAST_SECONDS = 3.0
_NO_BOUND = 2**62


@asynccontextmanager
async def running_store(
    config: ServerConfig, nursery: trio.Nursery, wall: Callable[[], datetime]
) -> AsyncIterator[Store]:
    """Hold the data folder, and open the store, which is made if it is missing. Close both at the end.

    The store's own tasks run in ``nursery``. No other process may write meanwhile. Raises ``StoreHeld`` or
    ``StoreError``.
    """
    async with wait_hold_store(config.data_dir):
        store = await trio.to_thread.run_sync(open_store, settings_of(config), wall)
        nursery.start_soon(store.serve)
        nursery.start_soon(store.keep_small)
        try:
            yield store
        finally:
            await store.aclose()


@asynccontextmanager
async def restored_nodes(
    store: Store, nodes: Nodes, refusals: Refusals, nursery: trio.Nursery
) -> AsyncIterator[None]:
    """Give ``nodes`` what earlier runs stored, and store the events of this run until the block ends.

    If the block ends without an error, the events and the refusals that still wait are stored then.
    """
    await _restore(store, nodes)
    keeper = EventWriter(nodes.events, refusals, store)
    nursery.start_soon(keeper.serve)
    yield
    refusals.sweep(ends=True)
    with trio.move_on_after(_LAST_SECONDS):  # a disk may hang
        await keeper.flush()
        await keeper.see_attached()


async def _restore(store: Store, nodes: Nodes) -> None:
    """Load the events and nodes of earlier runs, and have the registry learn of each new node."""
    nodes.events.restore(await _newest(store))
    with contextlib.suppress(StoreError):  # a full disk does not prevent the start
        await store.detach_all()
    for known in await store.known_nodes():
        # "The server is stopping" is no reason that a user of the next run can use.
        reason = None if known.reason is Reason.SERVER_STOPPING else known.reason
        nodes.learn(known.name, known_at=known.known_at, last_seen_at=known.last_seen_at, reason=reason)
    store.subscribe_nodes(nodes.learn)


async def _newest(store: Store) -> list[NodeEvent]:
    """As many as the ring takes."""
    found: list[NodeEvent] = []
    while len(found) < MAX_EVENTS:
        more = await store.events(before=found[0].id if found else _NO_BOUND)
        if not more:
            break
        found = more + found
    return found[-MAX_EVENTS:]
