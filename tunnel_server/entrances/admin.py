"""``/api/v1/admin/...``: the acts of an administrator, on the admin socket and nowhere else.

Whoever may open the socket may do all of it: the file's mode is the fence. The HTTPS listener has no such
entrance, so a certificate of whatever kind opens nothing here. GET reads and takes its arguments from
the query; POST acts, and takes them from a JSON object.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import h11

from tunnel_core.http import HttpConnection
from tunnel_core.reasons import Reason, Refused
from tunnel_server.admin.actions import READS, WRITES, Act, Actions
from tunnel_server.admin.arguments import Arguments, bad
from tunnel_server.policy import User

PATH = "/api/v1/admin/"
_MAX_BODY_BYTES = 64 * 1024
_MAX_PARAMETERS = 16


class AdminEntrance:
    """Answers requests of those whom the socket let in."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    async def handle(self, http: HttpConnection, request: h11.Request, user: User) -> None:
        """Answers one request, or raises ``Refused``."""
        path, _, query = request.target.decode("ascii").partition("?")
        act = _find(path.removeprefix(PATH), request.method)
        given = _object(await _body(http)) if request.method == b"POST" else _pairs(query)
        answer = await act(self._actions, Arguments(given), user.name)
        headers = [("content-type", "application/json"), ("cache-control", "no-store")]
        await http.respond(200, "OK", headers, json.dumps(answer, separators=(",", ":")).encode() + b"\n")


def _find(name: str, method: bytes) -> Act:
    acts = {b"GET": READS, b"POST": WRITES}.get(method, {})
    if name in acts:
        return acts[name]
    if name in READS or name in WRITES:
        wanted = "GET" if name in READS else "POST"
        raise Refused(Reason.METHOD_NOT_ALLOWED, f"{PATH}{name} is asked with {wanted}")
    raise Refused(Reason.NOT_FOUND, f"there is nothing at {PATH}{name[:200]}")


async def _body(http: HttpConnection) -> bytes:
    collected = bytearray()
    async for piece in http.receive_body():
        collected += piece
        if len(collected) > _MAX_BODY_BYTES:
            raise bad(f"the request is larger than {_MAX_BODY_BYTES // 1024} KiB")
    return bytes(collected)


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
