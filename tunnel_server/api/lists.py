"""Long lists of the API: built in small pieces, at a limited rate, one at a time for each user.

1. A row takes 50 us of the event loop, so the list of a fleet would stop all streams for 100 ms. Rows are
   built in pieces of one millisecond, with pauses between them.
2. A list is built after the request for it. Requests that arrive during a build share the next build. This
   next build begins at the earliest 0.5 ms a row after the begin of the previous one, 5 s at most: one second
   for 2,000 nodes. So lists take a tenth of a processor at any number of requests.
3. Each user gets one build at a time, at 10,000 rows a second, and may have four undelivered lists. Further
   requests of the user wait. Short answers have separate turns, so that an unread list does not delay them.
4. All pages of a list come from one snapshot while the server keeps the snapshot. Later pages begin with the
   first name after ``after`` in a new list.
5. Shell completion does not wait: it gets the last list if the next build may not begin yet.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import trio

from tunnel_core.reasons import Reason, Refused

MAX_PAGE = 1000
"""Nodes in one page of a list. One snapshot is kept for the next pages."""
PIECE_ROWS = 20
"""Rows of a list that are made in one piece, between which other work runs."""
SECONDS_PER_ROW = 0.0005
"""Time between the starts of two lists, for each row. 2,000 nodes: one list a second, a tenth of a
processor."""
_MAX_SECONDS = 5.0
"""Longest time between the starts of two lists; names for completion in a shell are as old at most."""
_REST_SECONDS = 0.001
ROWS_PER_SECOND = 10_000
"""Rows of lists that one user gets in a second."""
SHORT_ROWS_PER_SECOND = 100_000
"""Rows a second of short answers for one user: ``brief``, ``status``, ``version``, one node, events. A list
that is not read delays none of them."""
MAX_UNDELIVERED_LISTS = 4
"""Lists of one user that are on their way: 3.5 MB each for 5,000 nodes."""
MAX_UNDELIVERED_SHORT = 16
"""Short answers of one user that are on their way."""
_TURN_SECONDS = 10.0
"""Time for which a request waits for its turn."""
_MAX_IDLE_USERS = 256
_MAX_PARAMETERS = 8

_SELECTED_AT_ONCE = 50
"""Rows that are examined in one piece. A row takes 5 us; with hundreds of patterns 100 us."""
MayRead: TypeAlias = Callable[[str], bool]
"""Whether a user may read the node of this name."""
Json = dict[str, object]
T = TypeVar("T")


async def in_pieces(items: Iterable[T], size: int = PIECE_ROWS) -> AsyncIterator[list[T]]:
    """Yield ``items`` in lists of ``size``. After each list, let other tasks run for a millisecond."""
    piece: list[T] = []
    for item in items:
        piece.append(item)
        if len(piece) >= size:
            yield piece
            piece = []
            await trio.sleep(_REST_SECONDS)
    if piece:
        yield piece


class Page(NamedTuple):
    """Requested page: at most ``limit`` rows after the key ``after``. A ``limit`` of 0 sets no bound."""

    limit: int = 0
    after: str = ""


def parse_page(query: str) -> Page:
    """Parse the part of the URL after ``?``, and ignore other parameters. Raises ``Refused``."""
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS))
    except ValueError:
        raise Refused(Reason.BAD_REQUEST, "too many parameters") from None
    after, text = given.get("after", ""), given.get("limit", "")
    if not text:
        return Page(MAX_PAGE if after else 0, after)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise Refused(Reason.BAD_REQUEST, "limit is not a number of rows, 1 or more")
    return Page(min(int(text), MAX_PAGE), after)


class Answer(NamedTuple):
    """A JSON answer, and the number of rows that were made or examined for it."""

    body: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    serial: int
    keys: Sequence[str]
    rows: Sequence[bytes]


async def _selected(snapshot: _Snapshot, may_read: MayRead) -> _Snapshot:
    """Return the rows that may be read."""
    keys: list[str] = []
    rows: list[bytes] = []
    async for piece in in_pieces(zip(snapshot.keys, snapshot.rows, strict=True), _SELECTED_AT_ONCE):
        for key, row in piece:
            if may_read(key):
                keys.append(key)
                rows.append(row)
    return _Snapshot(snapshot.serial, keys, rows)


class Listing(Generic[T]):
    """One list of the API. ``items`` returns the items ordered by ``key``; ``row`` converts an item to JSON.

    With ``is_prompt`` a request gets the last list, and does not wait until the next build may begin.
    """

    def __init__(
        self,
        name: str,
        items: Callable[[], Iterable[T]],
        key: Callable[[T], str],
        row: Callable[[T], Json],
        *,
        is_prompt: bool = False,
    ) -> None:
        self.builds = 0  # Number of builds that have begun.
        self._name = name
        self._items = items
        self._key = key
        self._row = row
        self._is_prompt = is_prompt
        self._lock = trio.Lock()
        self._snapshot: _Snapshot | None = None
        self._paged: _Snapshot | None = None  # Snapshot of the list whose pages were last requested.
        self._next_at = -float("inf")

    async def answer(self, page: Page, may_read: MayRead | None) -> Answer:
        """Return the list, or one page with the ``after`` of the next page.

        ``may_read`` selects rows by their key, which is the name of a node; None selects all. Users share
        snapshots, and each gets only the rows that the user may read.
        """
        serial = page.after.rpartition(":")[0]
        kept = self._paged
        if kept is None or serial != str(kept.serial):
            kept = None
        snapshot = kept or await self._fresh()
        if may_read is not None:
            return self._answer(page, await _selected(snapshot, may_read), kept is not None, snapshot)
        return self._answer(page, snapshot, kept is not None, snapshot)

    def _answer(self, page: Page, shown: _Snapshot, is_kept: bool, snapshot: _Snapshot) -> Answer:
        """Return a page of ``shown``, the selected rows of ``snapshot``."""
        last = page.after.rpartition(":")[2]
        first = bisect_right(shown.keys, last) if page.after else 0
        rows = shown.rows[first : first + page.limit] if page.limit else shown.rows[first:]
        end, more = first + len(rows), b""
        if end < len(shown.rows):
            self._paged = snapshot
            more = b',"next":' + json.dumps(f"{shown.serial}:{shown.keys[end - 1]}").encode()
        elif is_kept:
            self._paged = None
        body = b'{"%b":[%b]%b}\n' % (self._name.encode(), b",".join(rows), more)
        # A user who may read few nodes of a fleet pays for all that were examined.
        return Answer(body, len(rows) if shown is snapshot else len(snapshot.rows))

    async def _fresh(self) -> _Snapshot:
        """Return a snapshot whose build began after this call, or the last one if the list is prompt.

        If this call is cancelled, the next waiting request builds the list.
        """
        builds_before = self.builds
        async with self._lock:
            snapshot = self._snapshot
            if self._is_prompt and snapshot is not None and trio.current_time() < self._next_at:
                return snapshot
            if snapshot is None or snapshot.serial <= builds_before:
                await trio.sleep_until(self._next_at)
                snapshot = await self._build()
            # A large fleet's list has megabytes, so it is kept only for waiting requests. Names take 0.5 MB.
            is_kept = self._is_prompt or self._lock.statistics().tasks_waiting
            self._snapshot = snapshot if is_kept else None
            return snapshot

    async def _build(self) -> _Snapshot:
        self.builds += 1
        serial, began = self.builds, trio.current_time()
        keys: list[str] = []
        rows: list[bytes] = []
        async for piece in in_pieces(self._items()):
            keys += map(self._key, piece)
            rows += [json.dumps(self._row(item), separators=(",", ":")).encode() for item in piece]
        self._next_at = began + min(_MAX_SECONDS, SECONDS_PER_ROW * len(rows))
        return _Snapshot(serial, keys, rows)


class _Turns:
    """Turns of one user. ``max_undelivered`` answers may be on their way."""

    def __init__(self, max_undelivered: int) -> None:
        self.max_undelivered = max_undelivered
        self.lock = trio.Lock()
        self.places = trio.Semaphore(max_undelivered)
        self.free_at = -float("inf")

    def is_idle(self, now: float) -> bool:
        return not self.lock.locked() and self.places.value == self.max_undelivered and self.free_at <= now


class Turn:
    """Turn of a user for one answer."""

    def __init__(self, turns: _Turns, rows_per_second: int) -> None:
        self._turns = turns
        self._rows_per_second = rows_per_second
        self._has_turn = self._has_place = False

    async def begin(self) -> None:
        """Wait for the turn. After cancellation the caller must call ``end`` too."""
        await self._turns.lock.acquire()
        self._has_turn = True
        await self._turns.places.acquire()
        self._has_place = True

    def made(self, rows: int) -> None:
        """Note that the answer of ``rows`` is built. The user's next build may run during delivery."""
        self._turns.free_at = trio.current_time() + rows / self._rows_per_second
        self._turns.lock.release()
        self._has_turn = False

    def end(self) -> None:
        """Note that the answer is delivered, or that there is none."""
        if self._has_turn:
            self.made(0)
        if self._has_place:
            self._turns.places.release()


class UserTurns:
    """Limit each user to one build at a time, and to ``rows_per_second``.

    ``undelivered`` answers of a user may be on their way. A client that stops reading, for example behind
    ``less``, keeps one answer for 30 s.
    """

    def __init__(
        self, *, rows_per_second: int = ROWS_PER_SECOND, undelivered: int = MAX_UNDELIVERED_LISTS
    ) -> None:
        self._rows_per_second = rows_per_second
        self._undelivered = undelivered
        self._users: dict[str, _Turns] = {}

    @asynccontextmanager
    async def turn(self, user: str) -> AsyncIterator[Turn]:
        """Wait for the user's turn. Raises ``Refused`` after 10 s without a turn.

        The block calls ``Turn.made`` after it has built the answer, and then delivers the answer.
        """
        turns = self._users.setdefault(user, _Turns(self._undelivered))
        turn = Turn(turns, self._rows_per_second)
        try:
            with trio.move_on_after(_TURN_SECONDS) as scope:
                await turn.begin()
            if scope.cancelled_caught:
                sentence = f"too many API answers to {user or 'this user'} are undelivered; read them first"
                raise Refused(Reason.TOO_MANY_OF_USER, sentence)
            await trio.sleep_until(turns.free_at)
            yield turn
        finally:
            turn.end()
            if len(self._users) > _MAX_IDLE_USERS:
                self._drop_idle()

    def _drop_idle(self) -> None:
        now = trio.current_time()
        for user in [user for user, turns in self._users.items() if turns.is_idle(now)]:
            del self._users[user]
