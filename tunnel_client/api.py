"""Requests to the server's API."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import h11
import trio

from tunnel_client.dial import Dialer, ServerUnreachable
from tunnel_core.http.api_client import ACCEPT_JSON, page_of
from tunnel_core.http.server import HttpClientConnection, exchange
from tunnel_core.reasons import Reason, Refused

_ANSWER_SECONDS = 15.0
_NODES_AT_ONCE = 1000
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Bound for one answer. A node takes about 400 bytes, so a fleet far beyond one server fits."""


async def ask(dialer: Dialer, page: str, *, wait_seconds: float = 0.0) -> dict[str, Any]:
    """Return the JSON object at ``/api/v1/<page>``. Raises ``Refused`` or ``ServerUnreachable``.

    ``wait_seconds`` is the time for which the request lets the server delay the answer.
    """
    seconds = _ANSWER_SECONDS + wait_seconds
    stream = await dialer.dial()
    try:
        with trio.fail_after(seconds):
            return await _ask(stream, dialer.name, page)
    except trio.TooSlowError:
        raise ServerUnreachable(f"{dialer.name} did not answer within {seconds:g} s") from None
    except trio.BrokenResourceError as error:
        raise broken_connection(dialer.name, error) from None
    finally:
        await trio.aclose_forcefully(stream)


async def ask_nodes(dialer: Dialer) -> dict[str, Any]:
    """Return all nodes, from as many pages as the server sends. Raises as ``ask``.

    An older server has no pages of a list, and sends everything at once.
    """
    whole, after, asked = dict[str, Any](), "", set[str]()
    while True:
        query = {"limit": str(_NODES_AT_ONCE), **({"after": after} if after else {})}
        answer = await ask(dialer, f"nodes?{urlencode(query)}")
        if not asked:
            whole = {key: value for key, value in answer.items() if key != "next"}
        elif isinstance(rows := whole.get("nodes"), list) and isinstance(more := answer.get("nodes"), list):
            rows += more
        asked.add(after)
        after = str(answer.get("next") or "")
        if not after or after in asked:
            return whole


async def _ask(stream: trio.abc.Stream, name: str, page: str) -> dict[str, Any]:
    connection = HttpClientConnection(stream, peer=name)
    headers = [("host", "qanat"), ACCEPT_JSON, ("connection", "close")]
    request = h11.Request(method="GET", target=f"/api/v1/{page}", headers=headers)
    response, body = await exchange(connection, request, max_body_bytes=_MAX_ANSWER_BYTES)
    return page_of(response, body, name)


def broken_connection(name: str, error: trio.BrokenResourceError) -> Refused | ServerUnreachable:
    """Return the error for a connection that broke before the answer.

    In TLS 1.3 the client finishes its handshake before the server checks the client's certificate. So a
    refused certificate appears only here, as an alert.
    """
    if "certificate" in str(error) or "unknown ca" in str(error):
        cure = "ask for a new bundle: `qanat-server issue user NAME`"
        return Refused(Reason.UNAUTHENTICATED, f"{name} refused the bundle's certificate: {error}; {cure}")
    return ServerUnreachable(f"{name} broke the connection: {error}")
