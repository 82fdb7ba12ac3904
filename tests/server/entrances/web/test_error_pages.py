"""Answers to refused requests: what they tell, in which form, and what they never tell."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes.edge import echo, open_edge, receive_until, refuse_with
from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.opener import NotOpened
from tunnel_server.access.routing import WebHost
from tunnel_server.entrances.web.error_pages import Failure, answer_to, redacted
from tunnel_server.reverse_proxy.messages import BrowserRequest

HOST = WebHost("red", "edge1")
CERTIFICATE = (
    "node edge1: TLS to 127.0.0.1:443 failed: self-signed certificate; set ca_file or verify = false for "
    "service red in /etc/qanat/agent.toml"
)


def request(accept: bytes = b"text/html", method: bytes = b"GET") -> BrowserRequest:
    return BrowserRequest(
        method=method,
        scheme=b"http",
        authority=b"red--edge1.localhost",
        target=b"/",
        headers=[(b"Accept", accept)],
        source="127.0.0.1",
    )


def answer(refused: Refused, asked: BrowserRequest) -> tuple[int, dict[bytes, bytes], str]:
    head, body = answer_to(Failure(refused, HOST), asked)
    return head.status, dict(head.headers), body.decode()


@pytest.mark.parametrize("accept", [b"text/html", b"application/json", b"*/*"])
def test_no_form_tells_the_path_of_a_file(accept: bytes) -> None:
    refused = NotOpened(Reason.TARGET_PROTOCOL, CERTIFICATE)
    head, body = answer_to(Failure(refused, HOST), request(accept))
    assert b"agent.toml" not in body.replace(b"operator publishes services in agent.toml", b"")
    assert b"/etc" not in body + head.reason
    assert b"self-signed certificate" in body
    assert refused.detail == CERTIFICATE  # the log tells the operator which file


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see /etc/qanat/agent.toml: line 3", "see (a file at the node): line 3"),
        ("unix:/run/docker.sock is refused", "unix:(a file at the node) is refused"),
        ("in '/home/anna/my.pem'", "in '(a file at the node)'"),
        ("in ~/x/agent.toml", "in (a file at the node)"),
        ("http://127.0.0.1:1880/flows is shown", "http://127.0.0.1:1880/flows is shown"),
        (
            "there is nothing at this path; / lists the nodes",
            "there is nothing at this path; / lists the nodes",
        ),
        ("and/or 10.0.0.0/8", "and/or 10.0.0.0/8"),
    ],
)
def test_paths_are_removed_from_sentences(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_json_for_programs_has_the_facts() -> None:
    refused = NotOpened(Reason.DIAL_REFUSED, "nobody listens", "facade00-1")
    status, headers, body = answer(refused, request(b"application/json, */*"))
    assert status == 502
    assert headers[b"content-type"] == b"application/json"
    content = json.loads(body)
    assert content.pop("advice")
    assert content == {
        "reason": "dial_refused",
        "detail": "nobody listens",
        "node": "edge1",
        "service": "red",
        "stream": "facade00-1",
    }


def test_a_line_of_text_for_everybody_else() -> None:
    _, headers, body = answer(Refused(Reason.NOT_FOUND, "nothing\nhere"), request(b"*/*"))
    assert body == "not_found: nothing here\n"
    assert headers[b"qanat-reason"] == b"not_found"


@pytest.mark.parametrize(
    ("reason", "method", "reloads"),
    [
        (Reason.NODE_NOT_ATTACHED, b"GET", True),
        (Reason.NODE_NOT_ATTACHED, b"POST", False),  # a repeated POST would be another request
        (Reason.SERVER_STOPPING, b"GET", True),
        (Reason.DIAL_REFUSED, b"GET", True),
        (Reason.UNKNOWN_NODE, b"GET", False),
        (Reason.TARGET_NOT_ALLOWED, b"GET", False),
    ],
)
def test_the_page_of_what_may_return_loads_itself_again(reason: Reason, method: bytes, reloads: bool) -> None:
    _, _, body = answer(Refused(reason), request(method=method))
    assert ('http-equiv="refresh"' in body) is reloads


def test_the_page_loads_and_runs_nothing() -> None:
    _, headers, body = answer(Refused(Reason.NODE_NOT_ATTACHED, "<script>x</script>"), request())
    policy = headers[b"content-security-policy"].decode()
    (style,) = re.findall("<style>(.*?)</style>", body, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'self'" in policy
    assert "<script" not in body
    assert not re.search("(src|href)=", body)


async def test_the_page_of_an_absent_node_says_since_when() -> None:
    async with open_edge() as edge:
        gone = edge.attach("edge1", echo)
        edge.nodes.detach(gone, Reason.SESSION_LOST)
        browser = await edge.dial(await edge.listen("web", edge.web().serve))
        ask = b"GET / HTTP/1.1\r\nHost: red--edge1.localhost\r\nAccept: text/html\r\n\r\n"
        for _ in range(2):  # the connection goes on, so the page loads again over it
            await browser.send_all(ask)
            page = (await receive_until(browser, b"</html>")).decode()
            assert page.startswith("HTTP/1.1 503 ")
            assert "<dt>Node</dt><dd>edge1</dd><dt>Service</dt><dd>red</dd><dt>Away since</dt>" in page
            assert "retry-after: 5\r\n" in page


async def test_the_page_of_a_refused_stream_has_its_id() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", refuse_with(Reason.DIAL_REFUSED, "nobody listens"))
        browser = await edge.dial(await edge.listen("web", edge.web().serve))
        await browser.send_all(b"GET / HTTP/1.1\r\nHost: red--edge1.localhost\r\nAccept: text/html\r\n\r\n")
        assert "<dt>Stream</dt><dd>facade00-1</dd>" in (await receive_until(browser, b"</html>")).decode()


@given(st.text())
def test_a_redacted_sentence_is_stable(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)
