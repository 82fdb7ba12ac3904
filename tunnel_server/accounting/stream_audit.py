"""Records of streams for the store: sampled by entrance, written in batches, bounded for each user.

1. A stream is recorded once, when it ends. The configuration says which part of an entrance's streams is
   recorded. A stream that the policy refused or ended is always recorded, unless the grants refused it: the
   audit has those refusals, one line a minute for each user.
2. Records wait in memory, and are written every two seconds in one transaction. So a stream costs no write,
   and a failing store delays nobody.
3. The waiting records are bounded, for all users and for each. What is beyond is counted as lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import trio

from tunnel_core.reasons import Category, Reason
from tunnel_core.telemetry.logs import StreamFacts
from tunnel_server.config import ServerConfig
from tunnel_server.store.database import StoreError
from tunnel_server.store.store import Store
from tunnel_server.store.stream_log import StreamRecord
from tunnel_server.store.timestamps import to_ms

FLUSH_SECONDS = 2.0
MAX_WAITING = 20_000
"""Records of streams that wait for the store, some 500 bytes each: 10,000 a second for two
seconds."""
MAX_WAITING_OF_USER = MAX_WAITING // 4
"""Waiting records of one user: a quarter, so that one user's streams leave room for those of others."""
_WRITTEN_AT_ONCE = 1000
_POLICY = {Category.POLICY, Category.IDENTITY, Category.PERMANENT}


class StreamAudit:
    """Recorder of streams. ``one_in`` says which part of an entrance's streams is recorded; 0 is none.

    An entrance that ``one_in`` does not name has each stream recorded. ``add`` writes records, ``on_lost`` is
    called with the number of records that have no room, and ``wall`` returns the time in UTC.
    """

    def __init__(
        self,
        add: Callable[[Sequence[StreamRecord]], Awaitable[None]],
        on_lost: Callable[[int], None],
        one_in: Mapping[str, int],
        wall: Callable[[], datetime],
    ) -> None:
        self._add = add
        self._on_lost = on_lost
        self._one_in = one_in
        self._wall = wall
        self._seen = Counter[str]()
        self._waiting: list[StreamRecord] = []
        self._of_user = Counter[str]()

    def note(
        self,
        facts: StreamFacts,
        reason: Reason,
        *,
        grant: str,
        address: str = "",
        seconds: float = 0.0,
        bytes_to_target: int = 0,
        bytes_to_user: int = 0,
    ) -> None:
        """Record a stream that ended for ``reason`` after ``seconds``. Never blocks."""
        if reason is Reason.NOT_GRANTED and not address:
            return
        if not self._is_chosen(facts.entrance) and reason.category not in _POLICY:
            return
        if len(self._waiting) >= MAX_WAITING or self._of_user[facts.user] >= MAX_WAITING_OF_USER:
            self._on_lost(1)
            return
        ended_at = to_ms(self._wall())
        self._of_user[facts.user] += 1
        self._waiting.append(
            StreamRecord(
                *(ended_at - round(seconds * 1000), ended_at, facts.stream, facts.user, facts.node),
                *(facts.target, address, facts.entrance, facts.source, grant, reason.word),
                *(bytes_to_target, bytes_to_user),
            )
        )

    def _is_chosen(self, entrance: str) -> bool:
        one_in = self._one_in.get(entrance, 1)
        if one_in <= 1:
            return one_in == 1
        self._seen[entrance] += 1
        return self._seen[entrance] % one_in == 1

    async def serve(self) -> None:
        """Write the records until this task is cancelled. What is not yet written stays."""
        while True:
            await trio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write the waiting records. If the store fails, the next call writes them."""
        while self._waiting:
            written = self._waiting[:_WRITTEN_AT_ONCE]
            try:
                await self._add(written)
            except StoreError:
                return  # the writer has logged it
            del self._waiting[: len(written)]
            self._of_user -= Counter(record.user for record in written)


def stream_audit_of(config: ServerConfig, store: Store, wall: Callable[[], datetime]) -> StreamAudit:
    """Return the recorder of a server, which writes to ``store``."""
    one_in = {str(entry.entrance): entry.one_in for entry in config.audit.streams}
    return StreamAudit(store.streams.add, store.streams.count_lost, one_in, wall)
