"""Fetch the status of the agent that runs on this machine. Blocks."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from tunnel_core.config.types import ListenAddress, Ops
from tunnel_core.text_files import NotPlainText, read_text_file, trouble_with

TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 1024 * 1024
_MAX_TOKEN_BYTES = 4096
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class UnreadableToken(ValueError):  # noqa: N818 - named after the state
    """Raised when the file of ``[ops] bearer_file`` cannot be read. The text is a sentence for the user."""


def fetch_status(ops: Ops) -> dict[str, Any]:
    """Fetch the status from the agent that listens at ``ops.listen``, which must be set. Waits 5 s at most.

    Raises ``OSError``, ``http.client.HTTPException`` or ``ValueError`` if no agent answers there, and
    ``UnreadableToken`` if the file with its token cannot be read.
    """
    assert ops.listen is not None
    return _fetch(ops.listen, _headers(ops))


def _headers(ops: Ops) -> dict[str, str]:
    if ops.bearer_file is None:
        return {}
    try:
        token = read_text_file(ops.bearer_file, _MAX_TOKEN_BYTES).strip()
    except (OSError, NotPlainText) as error:
        raise UnreadableToken(trouble_with(ops.bearer_file, error)) from None
    return {"Authorization": f"Bearer {token}"}


def _fetch(listen: ListenAddress, headers: Mapping[str, str]) -> dict[str, Any]:
    host = _ANY_ADDRESS.get(listen.host, listen.host)
    connection = http.client.HTTPConnection(host, listen.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/status.json", headers=dict(headers))
        answer = connection.getresponse()
        body = answer.read(_MAX_BYTES)
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"the listener answered {answer.status} {answer.reason}")
    status = json.loads(body)
    if not isinstance(status, dict) or "link" not in status:
        raise ValueError("the program that answers there is not an agent of this version")
    return status
