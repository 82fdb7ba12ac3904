"""``/api/v1/events?node=&after=&wait=``: events of nodes, for lists and for subscribers.

Without ``after`` the answer has the newest events. With ``after`` it has the oldest events above that id.
``wait`` (seconds) delays the answer until there is an event, or until the time is over. The answer is then
an empty list, not an error. A subscriber repeats the request with the ``last`` of the previous answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import trio

from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.access import Access
from tunnel_server.api.lists import MayRead
from tunnel_server.auth.users import User
from tunnel_server.events.event_log import Events, NodeEvent, event_as_json
from tunnel_server.events.subscribers import EventSubscribers
from tunnel_server.nodes.registry import Nodes

PATH = "/api/v1/events"
MAX_WAIT_SECONDS = 30.0
"""Time for which one request waits for the next event."""
MAX_LISTED = 1000
"""Events in one answer: some 200 KB, which take milliseconds to write."""
_MAX_PARAMETERS = 8
_MAX_ID = 2**63


class EventsQuery(NamedTuple):
    """Query for events. An empty ``node`` stands for all nodes, and ``after`` is the id of an event."""

    node: str = ""
    after: int | None = None
    wait_seconds: float = 0.0


def parse_query(query: str) -> EventsQuery:
    """Parse the part of the URL after ``?``. Raises ``Refused``."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise _bad("too many parameters") from None
    given = dict(pairs)
    if unknown := given.keys() - {"node", "after", "wait"}:
        raise _bad(f"{min(unknown)[:80]!r} is not a parameter; the parameters are node, after, wait")
    if len(given) != len(pairs):
        raise _bad("a parameter comes twice")
    return EventsQuery(given.get("node", ""), _after(given), _wait(given))


def _after(given: Mapping[str, str]) -> int | None:
    text = given.get("after", "")
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,19}", text, re.ASCII) or int(text) >= _MAX_ID:
        raise _bad("after is not the id of an event")
    return int(text)


def _wait(given: Mapping[str, str]) -> float:
    try:
        seconds = float(given.get("wait") or 0)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise _bad("wait is not a number of seconds")
    return min(seconds, MAX_WAIT_SECONDS)


def _bad(sentence: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, sentence)


async def wait(
    subscribers: EventSubscribers, nodes: Nodes, query: EventsQuery, user: User, access: Access
) -> EventsQuery:
    """Wait for an event, at most ``query.wait_seconds``. Return the query with the node's full name.

    Raises ``Refused`` if there are too many subscribers, if the node's name is ambiguous, or if the user may
    not read the node: the end of the wait would tell that something happened there.
    """
    node = (nodes.name_of(query.node) or query.node) if query.node else ""
    if node:
        access.require_node(user, node)
    after = query.after
    if query.wait_seconds:
        after = subscribers.events.last_id if after is None else after
        with trio.move_on_after(query.wait_seconds):
            await subscribers.wait_newer(after, node, user.name)
    return query._replace(node=node, after=after)


def answer(events: Events, query: EventsQuery, may_read: MayRead | None) -> dict[str, Any]:
    """Return the answer as JSON. ``gap`` is true if events after ``query.after`` are no longer in the log.

    ``may_read`` selects the events of nodes; None selects all. Events of the server concern every reader.
    """
    node, after = query.node, query.after
    page = events.newest(MAX_LISTED, node) if after is None else events.after(after, node, MAX_LISTED)
    return {
        "events": [
            event_as_json(event)
            for event in page
            if may_read is None or not event.node or may_read(event.node)
        ],
        "last": _last(events, page, is_first_page=after is None),
        "gap": after is not None and events.has_gap(after),
    }


def _last(events: Events, page: list[NodeEvent], *, is_first_page: bool) -> int:
    """Return the id after which the next page begins: the newest id, unless the page is full."""
    return events.last_id if is_first_page or len(page) < MAX_LISTED else page[-1].id
