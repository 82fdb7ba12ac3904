"""``/api/v1/admin/...``: actions of an administrator, on the admin socket only.

The mode of the socket's file decides which local users are administrators. The HTTPS listener does not have
these routes, and they refuse every user of another listener. GET reads, with arguments in the query. POST
changes, with arguments in a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from tunnel_core.http.router import GET, POST, Route, RoutedRequest, Section
from tunnel_core.http.server import json_body, read_body, respond_json
from tunnel_core.reasons import Reason
from tunnel_server.admin.actions import READS, WRITES, Action, Actions
from tunnel_server.admin.arguments import Arguments, bad
from tunnel_server.auth.callers import ADMINISTRATOR, Caller
from tunnel_server.auth.users import Administrator

Handler: TypeAlias = Callable[[RoutedRequest, Administrator], Awaitable[None]]

PATH = "/api/v1/admin/"
_MAX_BODY_BYTES = 4 * 1024 * 1024
"""Bytes of a request: a file of some ten thousand grants."""
_BODY_SECONDS = 10.0
_MAX_PARAMETERS = 16


class AdminEntrance:
    """Answer the requests of administrators."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def section(self) -> Section[Caller]:
        """Return one route for each action."""
        reads = [Route(GET, PATH + name, ADMINISTRATOR, self._read(action)) for name, action in READS.items()]
        writes = [
            Route(POST, PATH + name, ADMINISTRATOR, self._write(action)) for name, action in WRITES.items()
        ]
        return Section("admin", PATH, ADMINISTRATOR, [*reads, *writes])

    def _read(self, action: Action) -> Handler:
        async def handle(routed: RoutedRequest, caller: Administrator) -> None:
            await self._answer(routed, action, _pairs(routed.query), caller)

        return handle

    def _write(self, action: Action) -> Handler:
        async def handle(routed: RoutedRequest, caller: Administrator) -> None:
            body = await read_body(routed.http, _MAX_BODY_BYTES, _BODY_SECONDS, too_large=Reason.BAD_REQUEST)
            await self._answer(routed, action, _object(body), caller)

        return handle

    async def _answer(
        self, routed: RoutedRequest, action: Action, given: dict[str, Any], caller: Administrator
    ) -> None:
        answer = await action(self._actions, Arguments(given), caller.name)
        await respond_json(routed.http, json_body(answer))


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise bad("the request is not JSON") from None
    if not isinstance(given, dict):
        raise bad("the request is not a JSON object")
    return given


def _pairs(query: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise bad("there are too many parameters") from None
    if len(dict(pairs)) != len(pairs):
        raise bad("a parameter comes twice")
    return dict(pairs)
