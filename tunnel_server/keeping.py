"""The store in a running server: open for as long as it runs, and fed with what befalls the nodes.

Events go from the ring in memory to the store a little later and many at a time, and at the next start from
there into the ring. The ring is the queue: nothing waits for the disk, and a store that is slower than events
come loses the oldest, as the ring does. A takeover is also a line of the audit.

A store that fails holds nobody up: agents attach and streams go on, since all that they need is in memory. It
is asked again and again whether it works, so that ``/readyz`` tells the truth.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import trio

from tunnel_server.config import ServerConfig
from tunnel_server.events import MAX_EVENTS, Events, Kind, NodeEvent
from tunnel_server.refusals import Refusals
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.audit import Kind as AuditKind
from tunnel_server.store.database import StoreError
from tunnel_server.store.lock import wait_hold_store
from tunnel_server.store.places import settings_of
from tunnel_server.store.store import Store, open_store

_EVERY_SECONDS = 2.0
_AT_ONCE = 1000
_LAST_SECONDS = 3.0
_NO_BOUND = 2**62
_AUDITED = {Kind.TAKEN_OVER, Kind.DUPLICATE}


@asynccontextmanager
async def keep_store(
    config: ServerConfig,
    events: Events,
    refusals: Refusals,
    nursery: trio.Nursery,
    wall: Callable[[], datetime],
) -> AsyncIterator[Store]:
    """The store, made if it is missing, with its tasks in ``nursery``; nobody else may write meanwhile.

    Raises ``StoreHeld`` or ``StoreError``.
    """
    async with wait_hold_store(config.data_dir):
        store = await trio.to_thread.run_sync(open_store, settings_of(config), wall)
        nursery.start_soon(store.serve)
        events.restore(await _newest(store))
        keeper = EventKeeper(events, refusals, store)
        nursery.start_soon(keeper.serve)
        nursery.start_soon(store.keep_small)
        try:
            yield store
            refusals.sweep(ends=True)
            with trio.move_on_after(_LAST_SECONDS):  # a disk may hang
                await keeper.flush()
        finally:
            await store.aclose()


class EventKeeper:
    """From its making on; what came before is not kept."""

    def __init__(self, events: Events, refusals: Refusals, store: Store) -> None:
        self._events = events
        self._refusals = refusals
        self._store = store
        self._last = events.last_id

    async def serve(self) -> None:
        """Keeps events until it is cancelled."""
        while True:
            await trio.sleep(_EVERY_SECONDS)
            self._refusals.sweep()
            await self.flush()
            if self._store.is_failing:
                with contextlib.suppress(StoreError):
                    await self._store.probe()

    async def flush(self) -> None:
        """Keeps all that there are now. While the store fails they wait in the ring."""
        while found := self._events.after(self._last, most=_AT_ONCE):
            try:
                await self._store.keep_events(found)
            except StoreError:
                return  # the writer has logged it
            self._last = found[-1].id
            for event in found:
                if event.kind in _AUDITED:
                    self._store.note_nowait(_line(event))


async def _newest(store: Store) -> list[NodeEvent]:
    """As many as the ring takes."""
    found: list[NodeEvent] = []
    while len(found) < MAX_EVENTS:
        more = await store.events(before=found[0].id if found else _NO_BOUND)
        if not more:
            break
        found = more + found
    return found[-MAX_EVENTS:]


def _line(event: NodeEvent) -> AuditLine:
    reason = event.reason.word if event.reason else ""
    return AuditLine(
        AuditKind.TAKEOVER, node=event.node, reason=reason, detail=f"{event.kind.value}: {event.detail}"
    )
