"""Client of a running server's admin socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import h11
import trio

from tunnel_core.http.api_client import ACCEPT_JSON, page_of
from tunnel_core.http.server import HttpClientConnection, exchange
from tunnel_core.streams.sockets import SocketStream, connect_unix
from tunnel_server.api.admin import PATH

_ANSWER_SECONDS = 30.0
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


class NoServer(Exception):  # noqa: N818 - what there is
    """No server answers at the socket. The text has the cause.

    ``is_closed`` is true if there was no connection, so that the action was not performed.
    """

    def __init__(self, why: str, *, is_closed: bool = False) -> None:
        super().__init__(why)
        self.is_closed = is_closed


async def ask_server(socket: Path, method: str, path: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's answer to an action within 30 s. Raises ``Refused`` or ``NoServer``."""
    try:
        with trio.fail_after(_ANSWER_SECONDS):
            stream = await _open(socket)
            try:
                return await _ask(stream, f"the server at {socket}", method, path, arguments)
            finally:
                await trio.aclose_forcefully(stream)
    except trio.TooSlowError:
        raise NoServer(f"the server at {socket} did not answer within {_ANSWER_SECONDS:g} s") from None
    except trio.BrokenResourceError as error:
        raise NoServer(f"the server at {socket} broke the connection: {error}") from None


async def _open(socket: Path) -> SocketStream:
    try:
        return await connect_unix(socket)
    except OSError as error:
        raise NoServer(f"{socket} cannot be opened: {error.strerror}", is_closed=True) from None


async def _ask(
    stream: trio.abc.Stream, name: str, method: str, path: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    body = json.dumps(arguments).encode() if method == "POST" else b""
    query = f"?{urlencode(arguments)}" if method == "GET" and arguments else ""
    headers = [("host", "qanat"), ACCEPT_JSON, ("connection", "close"), ("content-length", str(len(body)))]
    request = h11.Request(method=method, target=f"{PATH}{path}{query}", headers=headers)
    connection = HttpClientConnection(stream, peer=name)
    response, content = await exchange(connection, request, body, max_body_bytes=_MAX_ANSWER_BYTES)
    return page_of(response, content, name)
