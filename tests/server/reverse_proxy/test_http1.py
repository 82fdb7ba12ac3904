"""The adapter from HTTP/1.1 of browsers to the seam."""

from __future__ import annotations

import h11
import pytest
import trio
import trio.testing

from tests.support.fakes.edge import receive_until
from tunnel_core.http.server import HttpConnection
from tunnel_server.reverse_proxy.http1 import Http1Browser, browser_request
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerHead, BrowserRequest

HOST = ("Host", "red--edge1.localhost")


def asked(*headers: tuple[str, str], method: str = "POST", version: str = "1.1") -> BrowserRequest:
    request = h11.Request(method=method, target="/a//%2F?B=1", headers=[HOST, *headers], http_version=version)
    return browser_request(request, "127.0.0.1", b"https")


def test_a_head_keeps_target_spelling_and_order() -> None:
    request = asked(("X-b", "2"), ("x-B", "1"))
    assert (request.method, request.scheme, request.authority) == (b"POST", b"https", b"red--edge1.localhost")
    assert request.target == b"/a//%2F?B=1"
    assert request.headers[1:] == [(b"X-b", b"2"), (b"x-B", b"1")]
    assert request.values(b"x-b") == [b"2", b"1"]


@pytest.mark.parametrize(
    ("headers", "length", "has_body"),
    [
        ([], 0, False),
        ([("Content-Length", "0")], 0, False),
        ([("Content-Length", "00")], 0, False),
        ([("Content-Length", "7")], 7, True),
        ([("Transfer-Encoding", "chunked")], None, True),
    ],
)
def test_whether_a_body_follows(headers: list[tuple[str, str]], length: int | None, has_body: bool) -> None:
    request = asked(*headers)
    assert (request.body_length, request.has_body) == (length, has_body)


@pytest.mark.parametrize(
    ("connection", "version", "upgrade"),
    [
        ("keep-alive, Upgrade", "1.1", b"SPDY/3.1"),
        ("close", "1.1", b""),
        ("Upgrade", "1.0", b""),
    ],
)
def test_an_upgrade_counts_only_beside_its_option(connection: str, version: str, upgrade: bytes) -> None:
    request = asked(("Connection", connection), ("Upgrade", "SPDY/3.1"), version=version)
    assert request.upgrade == upgrade


def test_the_expectation_of_a_100() -> None:
    assert asked(("Expect", "100-Continue")).expects_continue
    assert not asked(("Expect", "100-continue"), version="1.0").expects_continue
    assert not asked().expects_continue


async def opened(data: bytes) -> tuple[Http1Browser, trio.abc.ReceiveStream]:
    """Return the adapter for the request in ``data``, and what the browser reads."""
    browser_end, server_end = trio.testing.memory_stream_pair()
    await browser_end.send_all(data)
    http = HttpConnection(server_end)
    request = await http.next_request()
    assert request is not None
    return Http1Browser(http, browser_request(request, "127.0.0.1")), browser_end


async def test_a_body_comes_with_its_trailers_and_without_a_100() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    browser, end = await opened(head + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
    assert await browser.receive_body() == b"abc"
    assert await browser.receive_body() == b""
    assert await browser.receive_body() == b""
    assert browser.trailers == [(b"X-Sum", b"1")]
    await browser.send(AnswerHead(204, [], b"No Content"), AnswerEnd())
    assert await end.receive_some() == b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("line", "headers", "answer"),
    [
        (
            b"GET / HTTP/1.1",
            [],
            b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
        ),
        (
            b"GET / HTTP/1.1",
            [(b"Content-Length", b"2")],
            b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        ),
        (b"GET / HTTP/1.0", [], b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi"),
    ],
    ids=["chunked", "length", "http10"],
)
async def test_an_answer_leaves_out_what_the_browser_does_not_know(
    line: bytes, headers: list[tuple[bytes, bytes]], answer: bytes
) -> None:
    browser, end = await opened(line + b"\r\nHost: a\r\n\r\n")
    assert not browser.has_answered
    await browser.send(AnswerHead(103, [(b"Link", b"x")], b"Early"))
    assert not browser.has_answered
    await browser.send(AnswerHead(200, headers, b"OK"), b"hi", AnswerEnd(((b"X-Sum", b"1"),)))
    assert browser.has_answered
    assert await receive_until(end, answer[-4:]) == answer
