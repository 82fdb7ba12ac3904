"""Answers to refused requests of the web entrance: a page for people, JSON or a line of text for programs.

No I/O. A page is one answer without further assets and scripts. The page of a node or a service that may come
back loads itself again. Paths of files at the edge are removed: the sentence of an agent may name its
configuration, which is not for browsers. The log of the server has the whole sentence.
"""

from __future__ import annotations

import html
import http as status_names
import json
import re
from dataclasses import dataclass

from tunnel_core.http.head import REASON_HEADER, HttpRefused, reason_phrase
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Category, Reason, Refused
from tunnel_server.access.opener import NotOpened
from tunnel_server.access.routing import WebHost
from tunnel_server.entrances.web.pages import PAGE_HEADERS, page_of
from tunnel_server.nodes.registry import Node
from tunnel_server.reverse_proxy.messages import AnswerHead, BrowserRequest, Headers

RELOAD_SECONDS = 5
"""Time after which the page of an absent node or service loads itself again, and its ``Retry-After``."""
# An absolute path: a slash that begins a word, or follows the scheme in "unix:/run/x". "and/or", the path of
# a URL and a single slash are none.
_FILE = re.compile(r"(?<![\w/.~<])~?/(?![/\s])[^\s,;:'\"()<>]+")
_REDACTED = "(a file at the node)"

_ADVICE = {
    Reason.NODE_NOT_ATTACHED: "Check that the machine has power and network, and that qanat-agent runs.",
    Reason.SESSION_LOST: "The connection to the node broke. Load the page again to repeat the request.",
    Reason.UNKNOWN_NODE: "Look for the node in the list of nodes, or ask its operator for the right address.",
    Reason.UNKNOWN_SERVICE: "The node's operator publishes services in agent.toml, one [[service]] for each.",
    Reason.TARGET_NOT_ALLOWED: "The node's operator decides in agent.toml what may be reached.",
    Reason.DIAL_REFUSED: "The node is there, but no program listens behind this service.",
    Reason.DIAL_TIMEOUT: "The node is there, but the machine of this service did not answer it.",
    Reason.DIAL_UNREACHABLE: "The node is there, but has no route to the machine of this service.",
    Reason.NAME_NOT_RESOLVED: "The node could not resolve the name of this service's machine.",
    Reason.TARGET_PROTOCOL: "The node's operator can run `qanat-agent check` there, which names the cause.",
    Reason.TARGET_TIMEOUT: "The program behind this service is busy or hangs. Try again later.",
    Reason.SERVER_STOPPING: "The server restarts. This page loads itself again.",
    Reason.HEAD_TOO_LARGE: "Remove the cookies of this site, or use a shorter address.",
    Reason.SOURCE_NOT_ALLOWED: "Open the address in a tab of its own, by typing it.",
    Reason.UNAUTHENTICATED: "Ask the operator of this server for a user's certificate.",
    Reason.TOO_MANY_STREAMS: "Close tabs of this node, or try again later.",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A refused request, with what is known about its node and service."""

    refused: Refused
    host: WebHost | None = None
    node: Node | None = None

    @property
    def detail(self) -> str:
        """The sentence, without paths of files."""
        return redacted(self.refused.detail)

    @property
    def reloads(self) -> bool:
        """Whether the same request may succeed soon, without anybody's act."""
        reason = self.refused.reason
        if reason is Reason.UNKNOWN_NODE:
            return False
        may_return = (Reason.DIAL_REFUSED, Reason.DIAL_TIMEOUT, Reason.OPEN_TIMEOUT)
        return (
            reason.category in (Category.ABSENT, Category.TEMPORARY, Category.LIMIT) or reason in may_return
        )

    def facts(self) -> dict[str, str]:
        """Return node, service, since when, advice and stream, as far as they are known."""
        refused, found = self.refused, dict[str, str]()
        if self.host is not None and self.host.alias:
            found["node"] = self.node.name if self.node is not None else self.host.alias
            found["service"] = self.host.service
        if self.node is not None and refused.reason.category is Category.ABSENT:
            found["since"] = as_minute(self.node.since)
        if advice := _ADVICE.get(refused.reason):
            found["advice"] = advice
        if isinstance(refused, NotOpened) and refused.stream_id:
            found["stream"] = refused.stream_id
        return found


def redacted(text: str) -> str:
    """Return a sentence without absolute paths of files."""
    return _FILE.sub(_REDACTED, text)


def answer_to(failure: Failure, request: BrowserRequest) -> tuple[AnswerHead, bytes]:
    """Return the answer in the form that the request accepts: HTML, JSON, or else one line of text."""
    refused, accepted = failure.refused, _accepted(request)
    if b"text/html" in accepted:
        headers, body = list(PAGE_HEADERS), _page(failure, request).encode()
    elif b"application/json" in accepted:
        content = {"reason": refused.reason.word, "detail": failure.detail, **failure.facts()}
        headers, body = _plain_headers(b"application/json"), json.dumps(content).encode() + b"\n"
    else:
        text = " ".join(failure.detail.split())
        headers = _plain_headers(b"text/plain; charset=utf-8")
        body = f"{refused.reason.word}: {text}\n".encode()
    headers += [
        (REASON_HEADER.encode(), refused.reason.word.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    if failure.reloads:
        headers.append((b"retry-after", str(RELOAD_SECONDS).encode()))
    if isinstance(refused, HttpRefused):
        headers += [(name.encode(), value.encode()) for name, value in refused.headers]
    phrase = reason_phrase(Refused(refused.reason, failure.detail)).encode()
    return AnswerHead(refused.reason.status, headers, phrase), body


def wants_document(request: BrowserRequest) -> bool:
    """Whether the request accepts HTML or JSON by name; ``*/*`` alone gets text, because people use curl."""
    accepted = _accepted(request)
    return b"text/html" in accepted or b"application/json" in accepted


def _accepted(request: BrowserRequest) -> bytes:
    return b",".join(request.values(b"accept")).lower()


def _plain_headers(content_type: bytes) -> Headers:
    return [
        (b"content-type", content_type),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]


def _page(failure: Failure, request: BrowserRequest) -> str:
    status = failure.refused.reason.status
    title, facts = f"{status} {_status_name(status)}", failure.facts()
    rows = "".join(
        f"<dt>{name}</dt><dd>{html.escape(facts[key])}</dd>"
        for key, name in (
            ("node", "Node"),
            ("service", "Service"),
            ("since", "Away since"),
            ("stream", "Stream"),
        )
        if key in facts
    )
    advice = f"<p>{html.escape(facts['advice'])}</p>" if "advice" in facts else ""
    # A repeated GET has no effect at the target. A repeated POST would be another request.
    reloads = failure.reloads and request.method == b"GET"
    again = f"<p>This page loads itself again every {RELOAD_SECONDS} seconds.</p>" if reloads else ""
    return page_of(
        title,
        f"<h1>{html.escape(title)}</h1><p>{html.escape(failure.detail)}</p>{advice}{again}"
        f"<dl>{rows}<dt>Reason</dt><dd><code>{failure.refused.reason.word}</code></dd></dl>",
        reload_seconds=RELOAD_SECONDS if reloads else None,
    )


def _status_name(status: int) -> str:
    try:
        return status_names.HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request"  # nginx's phrase for 499.
