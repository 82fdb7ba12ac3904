"""The store in a running server: open for as long as it runs, and fed with the events of nodes.

At the start the nodes that the store knows become nodes of the registry. While agents are attached, the store
notes every five minutes that they were seen, and once more at a clean stop.

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

from tunnel_core import __version__
from tunnel_core.humanize import as_moment
from tunnel_core.reasons import Reason
from tunnel_server.config import ServerConfig
from tunnel_server.events import MAX_EVENTS, Events, Kind, NodeEvent
from tunnel_server.node_budgets import audit_budget
from tunnel_server.nodes import Nodes
from tunnel_server.refusals import Refusals
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.audit import Kind as AuditKind
from tunnel_server.store.database import StoreError
from tunnel_server.store.lock import wait_hold_store
from tunnel_server.store.places import settings_of
from tunnel_server.store.revoked import Kind as RevokedKind
from tunnel_server.store.store import Store, open_store

SEE_EVERY_SECONDS = 300.0
_EVERY_SECONDS = 2.0
_AT_ONCE = 1000
_LAST_SECONDS = 3.0
_NO_BOUND = 2**62
_AUDITED = {Kind.TAKEN_OVER, Kind.DUPLICATE}


@asynccontextmanager
async def keep_store(
    config: ServerConfig,
    nodes: Nodes,
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
        await _restore(store, nodes)
        keeper = EventKeeper(nodes.events, refusals, store)
        nursery.start_soon(keeper.serve)
        nursery.start_soon(store.keep_small)
        try:
            yield store
            refusals.sweep(ends=True)
            with trio.move_on_after(_LAST_SECONDS):  # a disk may hang
                await keeper.flush()
                await keeper.see_attached()
        finally:
            await store.aclose()


class EventKeeper:
    """From its making on; what came before is not kept."""

    def __init__(self, events: Events, refusals: Refusals, store: Store) -> None:
        self._events = events
        self._refusals = refusals
        self._store = store
        self._audit_lines = audit_budget()
        self._last = events.last_id
        self._see_at = trio.current_time() + SEE_EVERY_SECONDS

    async def serve(self) -> None:
        """Keeps events until it is cancelled."""
        while True:
            await trio.sleep(_EVERY_SECONDS)
            self._refusals.sweep()
            await self.flush()
            if trio.current_time() >= self._see_at:
                await self.see_attached()
            if self._store.is_failing:
                with contextlib.suppress(StoreError):
                    await self._store.probe()

    async def see_attached(self) -> None:
        """Notes that the nodes which are attached were seen now. A store that fails is left alone."""
        self._see_at = trio.current_time() + SEE_EVERY_SECONDS
        with contextlib.suppress(StoreError):  # the writer has logged it
            await self._store.see_attached()

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
                    self._audit(event)

    def _audit(self, event: NodeEvent) -> None:
        left_out = self._audit_lines.note((event.node, event.kind.value), trio.current_time())
        if left_out is not None:
            self._store.note_nowait(_line(event, left_out))


async def _restore(store: Store, nodes: Nodes) -> None:
    """Load what earlier runs of the server left: events, nodes, and revocations."""
    nodes.events.restore(await _newest(store))
    with contextlib.suppress(StoreError):  # a full disk does not prevent the start
        await store.detach_all()
    for known in await store.known_nodes():
        # "The server is stopping" is no reason that a user of the next run can use.
        reason = None if known.reason is Reason.SERVER_STOPPING else known.reason
        nodes.learn(known.name, known_at=known.known_at, last_seen_at=known.last_seen_at, reason=reason)
    nodes.is_revoked = lambda name: store.revoked.covers_name(RevokedKind.NODE, name)
    store.on_node_known = nodes.learn


async def how_it_started(store: Store) -> str:
    """The detail of the event that a server was started: how the run before ended."""
    last = None
    with contextlib.suppress(StoreError):  # the writer has logged it
        last = await store.newest_of_server()
    version = f"version {__version__}"
    if last is None:
        return version
    at = as_moment(last.at)
    if last.kind is Kind.SERVER_STOPPED:
        return f"{version}; the run before was stopped at {at}"
    return f"{version}; the run before, started at {at}, ended without a stop: killed, or by a fault"


async def _newest(store: Store) -> list[NodeEvent]:
    """As many as the ring takes."""
    found: list[NodeEvent] = []
    while len(found) < MAX_EVENTS:
        more = await store.events(before=found[0].id if found else _NO_BOUND)
        if not more:
            break
        found = more + found
    return found[-MAX_EVENTS:]


def _line(event: NodeEvent, left_out: int) -> AuditLine:
    reason = event.reason.word if event.reason else ""
    more = f"; {left_out} more lines like this were left out before" if left_out else ""
    detail = f"{event.kind.value}: {event.detail}{more}"
    return AuditLine(AuditKind.TAKEOVER, node=event.node, reason=reason, detail=detail)
