"""Write the events of nodes from the log in memory to the store, and takeovers to the audit as well.

Every five minutes, and once more at a clean stop, the store records that the attached agents were seen.
Events are written every two seconds, many in one transaction. The log in memory is the queue, so nothing
waits for the disk. If events come faster than the store writes, the oldest ones are lost, as in the log.

A failing store delays no agent and no stream, because all that they need is in memory. While the store fails
it is probed every two seconds, so that ``/readyz`` reports the recovery.
"""

from __future__ import annotations

import contextlib

import trio

from tunnel_core.humanize import as_moment
from tunnel_core.version import __version__
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.accounting.write_budget import audit_budget
from tunnel_server.events.event_log import EventKind, Events, NodeEvent
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import StoreError
from tunnel_server.store.store import Store

LAST_SEEN_SECONDS = 300.0
_FLUSH_SECONDS = 2.0
_BATCH = 1000
_AUDITED = {EventKind.TAKEN_OVER, EventKind.DUPLICATE}


class EventWriter:
    """Writer of the events that are added after its creation. Earlier events are not written."""

    def __init__(self, events: Events, refusals: Refusals, store: Store) -> None:
        self._events = events
        self._refusals = refusals
        self._store = store
        self._audit_lines = audit_budget()
        self._last_id = events.last_id
        self._next_refresh = trio.current_time() + LAST_SEEN_SECONDS

    async def serve(self) -> None:
        """Write events until this task is cancelled. Events that are not yet written stay in the log."""
        while True:
            await trio.sleep(_FLUSH_SECONDS)
            self._refusals.sweep()
            await self.flush()
            if trio.current_time() >= self._next_refresh:
                await self.refresh_last_seen()
            if self._store.is_failing:
                with contextlib.suppress(StoreError):
                    await self._store.probe()

    async def refresh_last_seen(self) -> None:
        """Record that the attached nodes are seen now. A failure of the store is ignored."""
        self._next_refresh = trio.current_time() + LAST_SEEN_SECONDS
        with contextlib.suppress(StoreError):  # the writer has logged it
            await self._store.refresh_last_seen()

    async def flush(self) -> None:
        """Write the events that are not yet written. If the store fails, the next call writes them."""
        while events := self._events.after(self._last_id, most=_BATCH):
            try:
                await self._store.add_events(events)
            except StoreError:
                return  # the writer has logged it
            self._last_id = events[-1].id
            for event in events:
                if event.kind in _AUDITED:
                    self._audit(event)

    def _audit(self, event: NodeEvent) -> None:
        left_out = self._audit_lines.note((event.node, event.kind.value), trio.current_time())
        if left_out is not None:
            self._store.note_nowait(_line(event, left_out))


async def describe_start(store: Store) -> str:
    """Return the detail of a ``server_started`` event: the version, and how the run before ended."""
    last = None
    with contextlib.suppress(StoreError):  # the writer has logged it
        last = await store.newest_of_server()
    version = f"version {__version__}"
    if last is None:
        return version
    at = as_moment(last.at)
    if last.kind is EventKind.SERVER_STOPPED:
        return f"{version}; the run before was stopped at {at}"
    return f"{version}; the run before, started at {at}, ended without a stop: killed, or by a fault"


def _line(event: NodeEvent, left_out: int) -> AuditLine:
    reason = event.reason.word if event.reason else ""
    more = f"; {left_out} more lines like this were left out before" if left_out else ""
    detail = f"{event.kind.value}: {event.detail}{more}"
    return AuditLine(AuditKind.TAKEOVER, node=event.node, reason=reason, detail=detail)
