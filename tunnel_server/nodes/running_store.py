"""The store in a running server: open while the server runs, and written by ``EventWriter``.

At the start the server loads the known nodes into the registry, and the newest stored events into its event
log. ``EventWriter`` then stores the events of this run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import trio

from tunnel_core.reasons import Reason
from tunnel_server.accounting.event_writer import EventWriter
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.accounting.stream_audit import StreamAudit
from tunnel_server.config import ServerConfig
from tunnel_server.events.event_log import MAX_EVENTS, NodeEvent
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.database import StoreError
from tunnel_server.store.lock import wait_hold_store
from tunnel_server.store.settings import settings_of
from tunnel_server.store.store import Store, open_store

_log = logging.getLogger("qanat.server")

NO_GRANT = (
    "no grant exists, so every user is refused; restore a backup if the store was lost, or add a grant: "
    "qanat-server grant add --user NAME --verb connect,http,api --node '*' --target '*'"
)
_FINAL_WRITE_SECONDS = 3.0
_NO_BOUND = 2**62


@asynccontextmanager
async def running_store(
    config: ServerConfig, nursery: trio.Nursery, wall: Callable[[], datetime]
) -> AsyncIterator[Store]:
    """Lock the data folder and open the store; create the store if it is missing. Release both at the end.

    The store's tasks run in ``nursery``. No other process can write meanwhile. Raises ``StoreHeld`` or
    ``StoreError``.
    """
    async with wait_hold_store(config.data_dir):
        store = await trio.to_thread.run_sync(open_store, settings_of(config), wall)
        if not store.access.rules.grants:
            _log.error(NO_GRANT)
        nursery.start_soon(store.serve)
        nursery.start_soon(store.prune_hourly)
        nursery.start_soon(store.access.write_uses_regularly)
        try:
            yield store
        finally:
            await store.aclose()


@asynccontextmanager
async def restored_nodes(
    store: Store, nodes: Nodes, refusals: Refusals, streams: StreamAudit, nursery: trio.Nursery
) -> AsyncIterator[None]:
    """Load what earlier runs stored into ``nodes``, and store the events of this run until the block ends.

    If the block ends without an error, the remaining events, refusals and records of streams are stored at
    its end, within 3 s.
    """
    await _restore(store, nodes)
    event_writer = EventWriter(nodes.events, refusals, store)
    nursery.start_soon(event_writer.serve)
    nursery.start_soon(streams.serve)
    yield
    refusals.sweep(ends=True)
    with trio.move_on_after(_FINAL_WRITE_SECONDS):  # a disk may hang
        await event_writer.flush()
        await streams.flush()
        await event_writer.refresh_last_seen()


async def _restore(store: Store, nodes: Nodes) -> None:
    """Load the events and nodes of earlier runs, and subscribe the registry to new nodes."""
    nodes.events.restore(await _newest(store))
    with contextlib.suppress(StoreError):  # a full disk does not prevent the start
        await store.detach_all()
    for known in await store.known_nodes():
        # In the next run, "the server is stopping" would explain nothing to a user.
        reason = None if known.reason is Reason.SERVER_STOPPING else known.reason
        nodes.learn(known.name, known_at=known.known_at, last_seen_at=known.last_seen_at, reason=reason)
    store.subscribe_nodes(nodes.learn)


async def _newest(store: Store) -> list[NodeEvent]:
    """Return as many of the newest events as the event log holds, oldest first."""
    events: list[NodeEvent] = []
    while len(events) < MAX_EVENTS:
        older = await store.events(before=events[0].id if events else _NO_BOUND)
        if not older:
            break
        events = older + events
    return events[-MAX_EVENTS:]
