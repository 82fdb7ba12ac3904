"""Bodies that are read whole, and answers in JSON."""

from __future__ import annotations

import h11
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from tests.core.http.test_server import CHUNKED, POST, status_of, talk
from tunnel_core.http.server import HttpConnection, json_body, read_body, respond_json, serve_http
from tunnel_core.reasons import Reason

SLOW = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"


async def repeat(connection: HttpConnection, _: h11.Request) -> None:
    body = await read_body(connection, 5, 10.0, too_large=Reason.BAD_CSR)
    await respond_json(connection, json_body({"heard": body.decode()}), [("date", "now")])


@pytest.mark.parametrize(("asked", "heard"), [(POST, "hello"), (CHUNKED, "abcde")])
async def test_a_body_is_read_whole_and_answered_in_json(asked: bytes, heard: str) -> None:
    head, _, body = (await talk(asked, handler=repeat)).partition(b"\r\n\r\n")
    assert body == b'{"heard":"%b"}\n' % heard.encode()
    assert head.split(b"\r\n")[1:4] == [
        b"content-type: application/json",
        b"date: now",
        b"cache-control: no-store",
    ]


@pytest.mark.parametrize("asked", [POST.replace(b"5\r\n\r\n", b"6\r\n\r\nx"), CHUNKED.replace(b"2", b"3")])
async def test_a_body_that_is_too_large_is_refused_with_the_callers_reason(asked: bytes) -> None:
    answer = await talk(asked.replace(b"de\r\n", b"def\r\n"), handler=repeat)
    assert (status_of(answer), b"\r\nqanat-reason: bad_csr\r\n" in answer) == (400, True)


async def test_a_body_that_comes_byte_by_byte_has_a_time(autojump_clock: MockClock) -> None:
    async def patient(connection: HttpConnection, _: h11.Request) -> None:
        await read_body(connection, 1000, 10.0, too_large=Reason.BAD_REQUEST)

    began, client_end = trio.current_time(), trio.Event()
    client, server = memory_stream_pair()

    async def drip() -> None:
        await client.send_all(SLOW)
        while not client_end.is_set():
            await client.send_all(b"x")
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, server, patient)
        nursery.start_soon(drip)
        answer = await client.receive_some()
        client_end.set()
        await client.aclose()
        nursery.cancel_scope.cancel()
    assert (status_of(answer), 10 <= trio.current_time() - began < 12) == (408, True)
