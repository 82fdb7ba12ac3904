"""``/api/v1/events?node=&after=&wait=``: what befell the nodes, for lists and for followers.

Without ``after`` the newest events; with it, the oldest above that id. ``wait`` (seconds) holds the
answer back until there is one, for so long at most: a follower asks again with the ``last`` it was
given. The answer to a follower whose node was quiet is an empty list, no error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import trio

from tunnel_core.reasons import Reason, Refused
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
    node: str = ""
    after: int | None = None
    wait_seconds: float = 0.0


def parse_question(query: str) -> EventsQuery:
    """What the part after ``?`` asks for. Raises ``Refused``."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise _bad("too many parameters") from None
    given = dict(pairs)
    if unknown := given.keys() - {"node", "after", "wait"}:
        raise _bad(f"{min(unknown)[:80]!r} is no parameter; there is node, after, wait")
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


async def wait(followers: EventSubscribers, nodes: Nodes, question: EventsQuery, user: str) -> EventsQuery:
    """Wait as long as asked for an event. Return the question with the node's full name.

    Raises ``Refused`` if too many follow, or the node's name is ambiguous.
    """
    node = (nodes.name_of(question.node) or question.node) if question.node else ""
    after = question.after
    if question.wait_seconds:
        after = followers.events.last_id if after is None else after
        with trio.move_on_after(question.wait_seconds):
            await followers.wait_newer(after, node, user)
    return question._replace(node=node, after=after)


def answer(events: Events, question: EventsQuery) -> dict[str, Any]:
    """Return the page."""
    node, after = question.node, question.after
    found = events.newest(MAX_LISTED, node) if after is None else events.after(after, node, MAX_LISTED)
    return {
        "events": [event_as_json(event) for event in found],
        "last": _last(events, found, is_first_look=after is None),
        "gap": after is not None and events.has_gap(after),
    }


def _last(events: Events, found: list[NodeEvent], *, is_first_look: bool) -> int:
    """From where to go on: the end of the ring, unless more stands behind what was given."""
    return events.last_id if is_first_look or len(found) < MAX_LISTED else found[-1].id
