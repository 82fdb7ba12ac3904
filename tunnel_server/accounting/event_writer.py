"""Events of nodes on their way from the log in memory to the store, and takeovers to the audit.

While agents are attached, the store notes every five minutes that they were seen, and once more at a clean
stop. Events go to the store a little later and many at a time. The log in memory is the queue: nothing waits
for the disk, and a store that is slower than events come loses the oldest, as the log does. A takeover is
also a line of the audit.

A store that fails delays no agent and no stream, because all that they need is in memory. The store is probed
again and again, so that ``/readyz`` tells the truth.
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

SEE_EVERY_SECONDS = 300.0
_EVERY_SECONDS = 2.0
_AT_ONCE = 1000
_AUDITED = {EventKind.TAKEN_OVER, EventKind.DUPLICATE}


class EventWriter:
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


async def how_it_started(store: Store) -> str:
    """The detail of the event that a server was started: how the run before ended."""
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
