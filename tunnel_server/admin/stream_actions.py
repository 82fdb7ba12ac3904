"""The action of an administrator on records of streams. It takes the store and returns JSON."""

from __future__ import annotations

from typing import Any

from tunnel_core.config.types import ENTRANCES
from tunnel_server.admin.arguments import Arguments, bad
from tunnel_server.store.store import Store
from tunnel_server.store.stream_log import MAX_LISTED, StreamQuery

_MAX_MS = 2**62


async def recorded_streams(store: Store, given: Arguments, by: str) -> dict[str, Any]:
    """Return the newest records of streams that match. Raises ``Refused``."""
    entrance = given.text("entrance", "")
    if entrance and entrance not in ENTRANCES:
        raise bad(f"{entrance[:80]!r} is not an entrance; the entrances are {', '.join(ENTRANCES)}")
    query = StreamQuery(
        user=given.text("user", ""),
        node=given.text("node", ""),
        entrance=entrance,
        since=given.whole("since_ms", 0, least=0, most=_MAX_MS),
        until=given.whole("until_ms", _MAX_MS, least=0, most=_MAX_MS),
        before=given.whole("before", _MAX_MS, least=0, most=_MAX_MS),
        most=given.whole("most", 100, least=1, most=MAX_LISTED),
    )
    given.done()
    return {"streams": await store.streams.find(query), "lost": store.streams.lost}
