from __future__ import annotations

import functools
import itertools
import json
import logging
import socket
from collections.abc import Callable, Sequence

import h11
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

from tunnel_core.http.server import (
    Handler,
    HeadLimits,
    HttpClientConnection,
    HttpConnection,
    exchange,
    reason_phrase,
    serve_http,
)
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.half_closed import CHECK_SECONDS
from tunnel_core.streams.sockets import RESET_ON_CLOSE, SocketStream, tune


async def echo(connection: HttpConnection, request: h11.Request) -> None:
    if request.target == b"/refused":
        raise Refused(Reason.NODE_NOT_ATTACHED, "node edge-7 has no agent attached")
    if request.method == b"CONNECT":
        ahead = await connection.accept_connect()
        await connection.stream.send_all(b"ahead:" + ahead)
        return
    body = b"".join([chunk async for chunk in connection.receive_body()])
    await connection.respond(200, body=request.target + b":" + body)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = bytearray()
    while data := await stream.receive_some(65536):
        received += data
    return bytes(received)


async def talk(
    *pieces: bytes, handler: Handler = echo, limits: HeadLimits | None = None, eof: bool = True
) -> bytes:
    """Return what a client that sends the pieces receives until the server closes."""
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, server, handler, limits)
        for piece in pieces:
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        if eof:
            await client.send_eof()
        return await read_all(client)
    raise AssertionError("not reached")


GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
REFUSED = b"GET /refused HTTP/1.1\r\nHost: x\r\n\r\n"
CONNECT = b"CONNECT edge1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
async def test_an_upgrade_that_is_not_taken_leaves_its_body_and_the_connection_whole(
    method: bytes, protocol: bytes, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    asked = (
        method + b" /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n" + body
    )
    answers = await talk(asked, asked)
    assert answers.count(b"HTTP/1.1 200 ") == answers.count(b"/a:abc") == 2
    assert not caplog.records


async def test_requests_follow_each_other_on_one_connection() -> None:
    expected = ok(b"/a:") + ok(b"/b:hello") + ok(b"/c:abcde")
    assert await talk(GET, POST, CHUNKED) == expected
    assert await talk(GET + POST + CHUNKED) == expected


async def test_a_connection_ends_when_the_client_asks_for_the_end(autojump_clock: MockClock) -> None:
    assert await talk(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET, eof=False) == (
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: close\r\n\r\n/a:"
    )


async def test_a_silent_connection_gets_no_answer() -> None:
    assert await talk() == b""


async def test_a_head_request_gets_no_body() -> None:
    answer = await talk(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", GET)
    assert answer == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" + ok(b"/a:")


async def test_bytes_that_are_no_request_after_a_head_request_are_refused() -> None:
    answer = await talk(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n")
    first, _, second = answer.partition(b"\r\n\r\n")
    assert (status_of(first), status_of(second)) == (200, 400)
    assert second.partition(b"\r\n\r\n")[2].startswith(b"bad_request: ")


# CONNECT and upgrades.


async def test_the_server_sends_nothing_after_the_blank_line_of_a_connect() -> None:
    async def accept(connection: HttpConnection, _: h11.Request) -> None:
        assert await connection.accept_connect() == b""
        assert connection.has_switched

    assert await talk(CONNECT, handler=accept) == b"HTTP/1.1 200 Connection established\r\n\r\n"


async def test_bytes_behind_a_connect_are_handed_over() -> None:
    answer = await talk(CONNECT + b"\x16\x03early")
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nahead:\x16\x03early"


async def test_bytes_behind_an_upgrade_are_handed_over() -> None:
    async def upgrade(connection: HttpConnection, _: h11.Request) -> None:
        headers = [("connection", "upgrade"), ("upgrade", "websocket")]
        await connection.send(h11.InformationalResponse(status_code=101, headers=headers, reason=b"OK"))
        await connection.stream.send_all(connection.switch())

    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81frame"
    answer = await talk(request, handler=upgrade)
    assert answer.startswith(b"HTTP/1.1 101 OK\r\n")
    assert answer.endswith(b"\r\n\r\n\x81frame")


async def test_a_switch_needs_an_accepted_connect() -> None:
    client, server = memory_stream_pair()
    connection = HttpConnection(server)
    await client.send_all(CONNECT)
    await connection.next_request()
    with pytest.raises(RuntimeError):
        connection.switch()


def _sockets(kind: str) -> tuple[socket.socket, SocketStream]:
    """A client's blocking socket, and the server's end of it."""
    if kind == "unix":
        near, far = socket.socketpair()
        return near, SocketStream(far)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, SocketStream(listener.accept()[0])


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


def _close(client: socket.socket) -> None:
    client.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("early", [0, 9, len(GET), len(GET) + len(CONNECT) + 4])
async def test_it_does_not_matter_how_much_of_the_first_head_is_there_at_the_start(
    kind: str, early: int
) -> None:
    client, server = _sockets(kind)
    data = GET + CONNECT + b"data"
    client.sendall(data[:early])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, server, echo)
        await trio.testing.wait_all_tasks_blocked(0.01)
        if late := data[early:]:
            client.sendall(late)
        with client:
            client.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
            answer = b""
            while not answer.endswith(b"ahead:data"):
                answer += (received := await stream.receive_some())
                assert received, answer
    assert answer.startswith(ok(b"/a:")) and answer.count(b"HTTP/1.1 200") == 2
    assert server.socket.fileno() < 0


@pytest.mark.parametrize("early", [b"", b"GET / HT"])
async def test_a_first_head_that_is_cut_gets_no_more_than_before(early: bytes) -> None:
    client, server = _sockets("unix")
    client.sendall(early)
    client.shutdown(socket.SHUT_WR)
    with client:
        await serve_http(server, echo)
        answer = client.recv(4096)
    assert answer[:12] == (b"HTTP/1.1 400" if early else b"")


@pytest.mark.parametrize("ends_input_first", [False, True])
@pytest.mark.parametrize(("kind", "leave"), [("tcp", _reset), ("unix", _close)])
async def test_a_user_who_breaks_the_connection_before_the_answer_is_noticed(
    kind: str, leave: Callable[[socket.socket], None], ends_input_first: bool, mock_clock: MockClock
) -> None:
    client, server = _sockets(kind)
    connection = HttpConnection(server)
    client.sendall(CONNECT + b"early bird")
    await connection.next_request()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_left)
        if ends_input_first:
            client.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks, "the end of input is no break"
        leave(client)
        mock_clock.jump(10)
    assert connection.read_ahead == b"early bird"
    server.close_nowait()


async def test_a_user_who_breaks_the_connection_is_noticed_behind_what_is_not_read(
    mock_clock: MockClock,
) -> None:
    client, server = _sockets("tcp")
    connection = HttpConnection(server)
    client.sendall(CONNECT)
    await connection.next_request()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_left)
        client.sendall(bytes(200_000))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks
        _reset(client)
        mock_clock.jump(10)
    server.close_nowait()


async def test_a_user_who_floods_before_the_answer_is_not_read_for_ever() -> None:
    client, server = memory_stream_pair()
    connection = HttpConnection(server)
    await client.send_all(CONNECT + bytes(300_000))
    await connection.next_request()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_left)
        await trio.testing.wait_all_tasks_blocked()
        assert 64 * 1024 <= len(connection.read_ahead) <= 128 * 1024
        nursery.cancel_scope.cancel()
    assert len(await connection.accept_connect()) <= 128 * 1024


async def test_the_keepalive_of_a_connection_is_as_before_when_the_answer_is_there() -> None:
    client, server = _sockets("tcp")
    tune(server.socket)
    connection = HttpConnection(server)
    client.sendall(CONNECT)
    await connection.next_request()
    idle = server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_left)
        client.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == CHECK_SECONDS
        nursery.cancel_scope.cancel()
    assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle == 60
    client.close()
    server.close_nowait()


async def test_the_wait_for_an_answer_may_end_after_the_connection_was_closed() -> None:
    client, server = _sockets("tcp")
    connection = HttpConnection(server)
    client.sendall(CONNECT)
    await connection.next_request()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_left)
        client.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
        server.close_nowait()
    client.close()


# Bodies.


async def test_continue_is_sent_when_the_body_is_wanted() -> None:
    request = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    assert await talk(request, b"hello") == b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"/b:hello")


async def test_continue_is_not_sent_before_a_refusal(autojump_clock: trio.testing.MockClock) -> None:
    request = b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    assert status_of(await talk(request, eof=False)) == 503


async def test_an_unread_body_does_not_become_a_request() -> None:
    async def ignore(connection: HttpConnection, request: h11.Request) -> None:
        await connection.respond(200, body=request.target)

    assert await talk(POST + GET, handler=ignore) == ok(b"/b") + ok(b"/a")


async def test_a_long_unread_body_costs_the_connection(autojump_clock: MockClock) -> None:
    async def ignore(connection: HttpConnection, request: h11.Request) -> None:
        await connection.respond(200, body=request.target)

    request = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + bytes(1_000_000)
    assert await talk(request, handler=ignore, eof=False) == ok(b"/b")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"x\r\n", b"bad_request"),
        (b"3\r\nabcX", b"bad_request"),
        (b"3\r\nab", b"user_left"),
        (b"", b"user_left"),
    ],
)
async def test_a_broken_body_is_refused(body: bytes, word: bytes) -> None:
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await talk(head + body)).rpartition(b"\r\n\r\n")[2].startswith(word)


async def test_a_body_that_stops_arriving_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    answer = await talk(POST[:-1], eof=False, limits=HeadLimits(body_idle_seconds=5))
    assert status_of(answer) == 504


async def test_both_directions_move_at_the_same_time() -> None:
    async def parrot(connection: HttpConnection, _: h11.Request) -> None:
        response = h11.Response(status_code=200, headers=[("transfer-encoding", "chunked")])
        await connection.send(response)
        async for chunk in connection.receive_body():
            await connection.send(h11.Data(data=chunk))
        await connection.send(h11.EndOfMessage())

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, server, parrot)
        connection = HttpClientConnection(client)
        headers = [("host", "x"), ("transfer-encoding", "chunked")]
        await connection.send(h11.Request(method="POST", target="/", headers=headers))
        await connection.receive_response()
        body = connection.receive_body()
        for word in (b"one", b"two"):
            await connection.send(h11.Data(data=word))
            assert await anext(body) == word
        await connection.send(h11.EndOfMessage())
        assert [chunk async for chunk in body] == []
        assert connection.finish()
        await client.aclose()


# Bounds.


async def test_a_head_that_is_too_long_is_refused(autojump_clock: MockClock) -> None:
    limits = HeadLimits(max_head_bytes=len(GET))
    assert await talk(GET, limits=limits) == ok(b"/a:")
    longer = GET.replace(b"/a", b"/aa")
    assert status_of(await talk(longer, limits=limits)) == 431
    assert status_of(await talk(longer[:-2] + b"X", limits=limits, eof=False)) == 431


async def test_too_many_headers_are_refused() -> None:
    head = b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 99
    assert status_of(await talk(head + b"\r\n")) == 200
    assert status_of(await talk(head + b"a: b\r\n\r\n")) == 431


@pytest.mark.parametrize("start", [b"", b"G", GET[:-1]])
async def test_a_head_that_does_not_come_is_refused(
    start: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    answer = await talk(start, eof=False, limits=HeadLimits(head_seconds=3))
    assert answer.startswith(b"HTTP/1.1 408 the request head did not arrive within 3 seconds\r\n")
    assert 3 <= trio.current_time() < 5


async def test_dripping_does_not_extend_the_time_for_a_head(autojump_clock: trio.testing.MockClock) -> None:
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, server, echo, HeadLimits(head_seconds=3))
        for byte in GET[:3]:
            await client.send_all(bytes([byte]))
            await trio.sleep(1)
        assert status_of(await read_all(client)) == 408
        await client.aclose()


async def test_an_idle_connection_is_closed_without_a_word(autojump_clock: trio.testing.MockClock) -> None:
    start = trio.current_time()
    assert await talk(GET, eof=False, limits=HeadLimits(idle_seconds=7)) == ok(b"/a:")
    assert trio.current_time() - start == pytest.approx(7, abs=1)


async def test_an_answer_that_is_not_read_ends_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, GET)
        await serve_http(server, echo, HeadLimits(answer_seconds=5))
        nursery.cancel_scope.cancel()
    assert trio.current_time() >= 5


# What two parsers might read differently.


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nCONTENT-LENGTH: 3\r\nA: b\r\ncontent-length:3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\ncontent-length : 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x01c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
    ],
)
async def test_ambiguous_framing_is_refused_and_ends_the_connection(request_bytes: bytes) -> None:
    answer = await talk(request_bytes + GET)
    assert status_of(answer) in {400, 501}
    assert answer.count(b"qanat-reason: ") == 1
    assert b"connection: close" in answer.lower()


async def test_a_tls_handshake_at_a_plain_port_gets_a_message(autojump_clock: MockClock) -> None:
    assert b"this port uses plain HTTP" in await talk(b"\x16\x03\x01\x02\x00", eof=False)


# Refusals.


async def test_a_refusal_is_a_sentence_in_the_reason_phrase() -> None:
    head, _, body = (await talk(REFUSED)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 node edge-7 has no agent attached\r\n")
    assert b"qanat-reason: node_not_attached" in head
    assert body == b"node_not_attached: node edge-7 has no agent attached\n"


async def test_a_refusal_is_json_for_a_client_that_accepts_json() -> None:
    answer = await talk(REFUSED.replace(b"Host", b"Accept: application/json\r\nHost"))
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "reason": "node_not_attached",
        "detail": "node edge-7 has no agent attached",
    }


@given(st.text())
def test_a_reason_phrase_is_printable_and_short(detail: str) -> None:
    phrase = reason_phrase(Refused(Reason.DIAL_FAILED, detail))
    assert len(phrase) <= 200
    assert all(" " <= character <= "~" for character in phrase)


def test_a_reason_phrase_has_one_line() -> None:
    refused = Refused(Reason.DIAL_FAILED, "no\r\nSet-Cookie: a=b\r\n\r\nü")
    assert reason_phrase(refused) == "no Set-Cookie: a=b ?"


async def test_refusals_are_reported() -> None:
    client, server = memory_stream_pair()
    refusals: list[Refused] = []
    await client.send_all(b"nonsense\r\n\r\n")
    await client.send_eof()
    await serve_http(server, echo, on_refused=refusals.append)
    assert [refused.reason for refused in refusals] == [Reason.BAD_REQUEST]


async def test_an_internal_error_reveals_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: HttpConnection, __: h11.Request) -> None:
        raise ValueError("the secret is 42")

    with caplog.at_level(logging.ERROR):
        answer = await talk(GET, handler=fail)
    assert status_of(answer) == 500
    assert b"42" not in answer
    assert "the secret is 42" in caplog.text


async def test_a_refusal_out_of_a_nursery_is_a_refusal() -> None:
    async def refuse() -> None:
        raise Refused(Reason.UNKNOWN_NODE, "no such node")

    async def nested(_: HttpConnection, __: h11.Request) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)

    assert status_of(await talk(GET, handler=nested)) == 404


async def test_a_user_who_breaks_the_connection_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def break_off(_: HttpConnection, __: h11.Request) -> None:
        raise trio.BrokenResourceError

    assert await talk(GET, handler=break_off) == b""
    assert not caplog.records


@pytest.mark.parametrize("failure", [Refused(Reason.SESSION_LOST), trio.BrokenResourceError("not in time")])
async def test_a_failure_behind_the_beginning_of_an_answer_resets_the_connection(failure: Exception) -> None:
    async def half(connection: HttpConnection, _: h11.Request) -> None:
        await connection.send(h11.Response(status_code=200, headers=[]), h11.Data(data=b"half"))
        raise failure

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        client = await trio.testing.open_stream_to_socket_listener(listener)
        server = SocketStream.adopt(await listener.accept())
        await client.send_all(b"GET / HTTP/1.0\r\n\r\n")
        nursery.start_soon(serve_http, server, half)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(client)
        await client.aclose()


async def test_cancelling_closes_the_connection() -> None:
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, server, echo)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")


# Any cut, any bytes.

WHOLE = GET + POST + CHUNKED + REFUSED


def pieces_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_pieces_mean_the_same_as_the_whole(cuts: list[int]) -> None:
    assert trio.run(talk, *pieces_of(WHOLE, cuts)) == trio.run(talk, WHOLE)


def test_byte_by_byte_means_the_same_as_the_whole() -> None:
    assert trio.run(talk, *pieces_of(WHOLE, range(1, len(WHOLE)))) == trio.run(talk, WHOLE)


FRAGMENTS = st.sampled_from(
    [
        *[b"GET ", b"CONNECT a:1 ", b"/ ", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r"],
        *[
            b"Host: x\r\n",
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
        ],
        *[b"Expect: 100-continue\r\n", b"Connection: close\r\n", GET, POST, CHUNKED],
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAGMENTS | st.binary(max_size=20), max_size=12))
def test_any_bytes_end_in_answers_and_a_close(fragments: list[bytes]) -> None:
    answer = trio.run(talk, b"".join(fragments))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


# The client's end.


async def answer_with(*pieces: bytes, eof: bool = True) -> HttpClientConnection:
    """A client connection whose request has been answered with the pieces."""
    client, server = memory_stream_pair()
    connection = HttpClientConnection(client)
    headers = [("host", "x"), ("connection", "upgrade"), ("upgrade", "websocket")]
    await connection.send(h11.Request(method="GET", target="/", headers=headers), h11.EndOfMessage())
    for piece in pieces:
        await server.send_all(piece)
    if eof:
        await server.send_eof()
    return connection


async def body_of(connection: HttpClientConnection) -> bytes:
    return b"".join([chunk async for chunk in connection.receive_body()])


async def test_a_client_exchanges_requests_on_one_connection() -> None:
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_http, server, echo)
        connection = HttpClientConnection(client)
        for target in ("/one", "/two"):
            request = h11.Request(method="GET", target=target, headers=[("host", "x")])
            response, body = await exchange(connection, request, max_body_bytes=100)
            assert (response.status_code, body) == (200, f"{target}:".encode())
            assert connection.finish()
        await client.aclose()


async def test_interim_answers_are_skipped_but_an_upgrade_is_not() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    connection = await answer_with(interim, interim, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert (await connection.receive_response()).status_code == 200
    assert await body_of(connection) == b"hi"
    connection = await answer_with(interim, b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n\x81", eof=False)
    assert (await connection.receive_response()).status_code == 101
    assert connection.switch() == b"\x81"


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    connection = await answer_with(b"HTTP/1.1 200 OK\r\n\r\nuntil", b" the end")
    await connection.receive_response()
    assert await body_of(connection) == b"until the end"
    assert not connection.finish()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent",
        b"HTTP/1.1 103 Hint\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_an_answer_that_is_no_http_is_refused(answer: bytes) -> None:
    connection = await answer_with(answer)
    with pytest.raises(Refused) as caught:
        await connection.receive_response()
    assert caught.value.reason is Reason.TARGET_PROTOCOL
    assert "the target" in caught.value.detail


async def test_an_answer_that_is_cut_short_is_refused() -> None:
    connection = await answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    await connection.receive_response()
    with pytest.raises(Refused, match="target_protocol: the target did not complete its answer"):
        await body_of(connection)


async def test_an_answer_that_does_not_come_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    connection = await answer_with(eof=False)
    with pytest.raises(Refused, match="the target did not answer within 2"):
        await connection.receive_response(timeout_seconds=2.5)


async def test_an_answer_larger_than_wanted_is_refused() -> None:
    client, server = memory_stream_pair()
    await server.send_all(ok(bytes(101)))
    request = h11.Request(method="GET", target="/", headers=[("host", "x")])
    with pytest.raises(Refused, match="larger than 100 bytes"):
        await exchange(HttpClientConnection(client), request, max_body_bytes=100)


class Rounds(trio.abc.Instrument):
    """Counts how often all who could run did."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@pytest.mark.parametrize("shared", [True, False])
async def test_connections_that_share_turns_are_dealt_with_one_in_each_round(shared: bool) -> None:
    """Work that waits meanwhile has its turn in between, however many connections arrive at once."""
    dealt_with: list[int] = []
    turns = trio.Lock() if shared else None
    gate, rounds = trio.Event(), Rounds()

    async def handle(http: HttpConnection, _: h11.Request) -> None:
        dealt_with.append(rounds.count)
        await http.respond(204)

    async def ask(stream: trio.abc.Stream) -> None:
        await gate.wait()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            served, client = memory_stream_pair()
            nursery.start_soon(functools.partial(serve_http, served, handle, turns=turns))
            nursery.start_soon(ask, client)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(rounds)
        gate.set()
    most_at_once = max(dealt_with.count(one) for one in dealt_with)
    assert most_at_once == 1 if shared else most_at_once > 1
