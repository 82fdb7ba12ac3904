"""Read the answers of the server's JSON API, for ``qanat`` and for the commands on the server."""

from __future__ import annotations

import json
from typing import Any

import h11

from tunnel_core.cli.command_line import printable
from tunnel_core.http.server import REASON_HEADER, header_values
from tunnel_core.reasons import Reason, Refused

ACCEPT_JSON = ("accept", "application/json")


def page_of(response: h11.Response | h11.InformationalResponse, body: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises ``Refused`` if its status is not 200 or it is not JSON.

    ``name`` is the server's name in sentences.
    """
    if response.status_code != 200:
        raise refusal_of(response, body, name)
    page = json_object(body)
    if page is None:
        raise Refused(Reason.TARGET_PROTOCOL, f"{name} did not answer with JSON: is it a Qanat server?")
    return page


def refusal_of(response: h11.Response | h11.InformationalResponse, body: bytes, name: str) -> Refused:
    """Return the refusal in an answer whose status is not 200: the reason and the sentence for people."""
    answer = json_object(body) or {}
    words = [answer.get("reason"), *(word.decode("latin-1") for word in _reason_words(response))]
    reason = next((Reason[str(word).upper()] for word in words if _is_reason(word)), None)
    phrase = response.reason.decode("latin-1")
    if reason is None:
        text = f"{name} answered {response.status_code} {phrase}: is it a Qanat server?"
        return Refused(Reason.TARGET_PROTOCOL, text)
    return Refused(reason, printable(str(answer.get("detail") or phrase)))


def _reason_words(response: h11.Response | h11.InformationalResponse) -> list[bytes]:
    return header_values(response, REASON_HEADER.encode())


def _is_reason(word: object) -> bool:
    return isinstance(word, str) and word.upper() in Reason.__members__ and word.islower()


def json_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a body; None if the body is anything else."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
