"""Answers of targets, also of those that bend the grammar."""

from __future__ import annotations

import contextlib

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.answers import MAX_ANSWER_HEAD_BYTES, MAX_INTERIM_ANSWERS, AnswerParser
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerEvent, AnswerHead

LENGTH_2 = (b"Content-Length", b"2")
OK = b"HTTP/1.1 200 OK\r\n"


def read(
    data: bytes, method: bytes = b"GET", *, ends: bool = False, step: int = 0
) -> tuple[list[AnswerEvent], AnswerParser]:
    """Return the events of ``data``, received in pieces of ``step`` bytes; adjacent pieces are joined."""
    parser = AnswerParser("red on edge1")
    parser.expect_answer(method)
    events: list[AnswerEvent] = []
    pieces = [data[at : at + step] for at in range(0, len(data), step)] if step else [data]
    for piece in [*filter(None, pieces), *([b""] if ends else [])]:
        parser.receive(piece)
        while (event := parser.next_event()) is not None:
            if isinstance(event, bytes) and events and isinstance(events[-1], bytes):
                events[-1] += event
            else:
                events.append(event)
    return events, parser


def refusal(data: bytes, method: bytes = b"GET", *, ends: bool = False) -> str:
    with pytest.raises(Refused) as caught:
        read(data, method, ends=ends)
    assert caught.value.reason is Reason.TARGET_PROTOCOL
    assert caught.value.detail.startswith("red on edge1 ")
    return caught.value.detail


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7])
@pytest.mark.parametrize(
    ("data", "headers", "body", "trailers", "may_reuse"),
    [
        (OK + b"Content-Length: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], True),
        (OK + b"content-length: 0\r\n\r\n", [(b"content-length", b"0")], b"", [], True),
        (
            OK + b"Transfer-Encoding: Chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
            [],
            b"hi",
            [(b"X-Sum", b"1")],
            True,
        ),
        (OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], False),
        (
            b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi",
            [LENGTH_2],
            b"hi",
            [],
            True,
        ),
        # Bent, and of one meaning.
        (b"\r\n\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], True),
        (b"http/1.1 200\r\nContent-Length: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], True),
        (b"HTTP/1.1 \t200  Very Fine \nContent-Length: 2\n\nhi", [LENGTH_2], b"hi", [], True),
        (OK + b"Content-Length \t: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], True),
        (OK + b"Content-Length: +2\r\n\r\nhi", [LENGTH_2], b"hi", [], False),
        (OK + b"Content-Length: 02\r\n\r\nhi", [LENGTH_2], b"hi", [], True),
        (OK + b"Content-Length: 2, 2\r\nContent-Length: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], False),
        (OK + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nhi", [LENGTH_2], b"hi", [], False),
        (
            OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            [],
            b"hi",
            [],
            False,
        ),
        (OK + b"Transfer-Encoding: chunked\n\n2\nhi\n 0 \nA: b\n\n", [], b"hi", [(b"A", b"b")], False),
        (
            OK + b"X-Long: a\r\n  b\r\n\tc\r\nContent-Length: 2\r\n\r\nhi",
            [(b"X-Long", b"a b c"), LENGTH_2],
            b"hi",
            [],
            True,
        ),
    ],
)
def test_answers_that_are_complete(
    data: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    trailers: list[tuple[bytes, bytes]],
    may_reuse: bool,
    step: int,
) -> None:
    (head, *pieces, end), parser = read(data, step=step)
    assert isinstance(head, AnswerHead) and isinstance(end, AnswerEnd)
    framed = [header for header in head.headers if header[0] != b"Connection"]
    assert (head.status, framed) == (200, headers)
    assert pieces == ([body] if body else [])
    assert list(end.trailers) == trailers
    assert parser.is_complete
    assert parser.may_reuse is may_reuse


@pytest.mark.parametrize("head", [OK + b"\r\n", OK + b"Transfer-Encoding: identity\r\n\r\n"])
def test_an_answer_without_length_ends_with_the_connection(head: bytes) -> None:
    events, parser = read(head + b"hi")
    assert events[1:] == [b"hi"] and not parser.is_complete
    events, parser = read(head + b"hi", ends=True)
    assert events[1:] == [b"hi", AnswerEnd()]
    assert not parser.may_reuse


@pytest.mark.parametrize(
    ("method", "head", "headers", "may_reuse"),
    [
        (b"HEAD", OK + b"Content-Length: 7", [(b"Content-Length", b"7")], True),
        (b"HEAD", OK + b"Transfer-Encoding: chunked", [], True),
        (b"HEAD", OK + b"X: y", [(b"X", b"y")], True),
        (b"GET", b"HTTP/1.1 304 N\r\nContent-Length: 7", [(b"Content-Length", b"7")], True),
        (b"GET", b"HTTP/1.1 204 N\r\nContent-Length: 0", [], True),
        (b"GET", b"HTTP/1.1 204 N\r\nContent-Length: 7", [], False),
        (b"GET", b"HTTP/1.1 204 N\r\nTransfer-Encoding: chunked", [], False),
    ],
)
def test_answers_without_a_body(
    method: bytes, head: bytes, headers: list[tuple[bytes, bytes]], may_reuse: bool
) -> None:
    events, parser = read(head + b"\r\n\r\n", method)
    assert isinstance(events[0], AnswerHead)
    assert events[0].headers == headers
    assert events[1:] == [AnswerEnd()]
    assert parser.may_reuse is may_reuse


def test_bytes_behind_an_answer_end_the_connection() -> None:
    events, parser = read(OK + b"Content-Length: 2\r\n\r\nhi" + OK)
    assert events[1:] == [b"hi", AnswerEnd()]
    assert not parser.may_reuse
    events, parser = read(OK + b"Content-Length: 2\r\n\r\nhi", ends=True)
    assert not parser.may_reuse


def test_many_answers_one_after_the_other() -> None:
    parser = AnswerParser()
    assert not parser.may_reuse
    for method in (b"HEAD", b"GET", b"GET"):
        parser.expect_answer(method)
        assert not parser.has_begun and not parser.is_complete
        parser.receive(OK + b"Content-Length: 2\r\n\r\n" + (b"" if method == b"HEAD" else b"hi"))
        while parser.next_event() is not None:
            pass
        assert parser.has_begun and parser.may_reuse


@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
        OK + b"Content-Length: 2, 3\r\n\r\nhi!",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Content-Length: -2\r\n\r\n",
        OK + b"Content-Length: \r\n\r\n",
        OK + b"Content-Length: 0x2\r\n\r\n",
        OK + b"Content-Length: 99999999999999999999\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\r\nhi\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2;\ra\r\nhi\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 101,
        OK + b"No colon\r\n\r\n",
        OK + b"Two words: x\r\n\r\n",
        OK + b": x\r\n\r\n",
        OK + b" folded first\r\n\r\n",
        OK + b"A: b\rContent-Length: 2\r\n\r\n",
        OK + b"A: b\0\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"<html>\n\n",
        b"\n" * 65,
        OK + b"A: " + b"b" * MAX_ANSWER_HEAD_BYTES,
        OK + b"a:\n" * 1001 + b"\n",
        b"HTTP/1.1 102 P\r\n\r\n" * (MAX_INTERIM_ANSWERS + 1),
    ],
)
def test_what_has_two_meanings_or_none_is_refused(data: bytes) -> None:
    refusal(data)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nA:", "closed the connection without an answer"),
        (OK + b"Content-Length: 3\r\n\r\nhi", "did not complete its answer"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nh", "did not complete its answer"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n", "did not complete its answer"),
    ],
)
def test_an_answer_cut_short_is_refused(data: bytes, detail: str) -> None:
    assert detail in refusal(data, ends=True)


def test_a_large_head_with_many_headers_passes() -> None:
    many = b"".join(b"X-%d: %s\r\n" % (index, b"v" * 95) for index in range(600))
    assert 60 * 1024 < len(many) < 64 * 1024
    events, _ = read(OK + many + b"Content-Length: 0\r\n\r\n", step=4000)
    assert isinstance(events[0], AnswerHead)
    assert len(events[0].headers) == 601


def test_interim_answers_come_one_by_one() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 25
    events, parser = read(interim + OK + b"Content-Length: 0\r\n\r\n")
    assert [event.status for event in events if isinstance(event, AnswerHead)] == [103] * 25 + [200]
    assert parser.may_reuse


def test_bytes_behind_a_101_are_left_alone() -> None:
    events, parser = read(b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
    assert [event.status for event in events if isinstance(event, AnswerHead)] == [101]
    assert parser.rest == b"\r\nHTTP/1.1 200 OK\r\n\r\n"
    assert not parser.may_reuse


def test_a_body_in_large_pieces_is_not_held_back() -> None:
    parser = AnswerParser()
    parser.expect_answer(b"GET")
    parser.receive(OK + b"Content-Length: 10\r\n\r\n")
    assert isinstance(parser.next_event(), AnswerHead)
    for piece in (b"abcd", b"efgh"):
        parser.receive(piece)
        parser.receive(b"")  # no end of the answer
        assert parser.next_event() == piece
    parser.receive(b"ijxx")
    assert parser.next_event() == b"ij"
    assert parser.next_event() == AnswerEnd()
    assert not parser.may_reuse


FRAGMENTS = st.sampled_from(
    [
        *(b"HTTP/1.1 200 OK\r\n", b"http/1.0 200\n", b"HTTP/1.1 204 N\r\n", b"HTTP/1.1 100 C\r\n\r\n"),
        *(b"Content-Length: 2\r\n", b"Content-Length: +3\r\n", b"Transfer-Encoding: chunked\r\n"),
        *(b"Transfer-Encoding : identity\n", b"Connection: close\r\n", b"X: y\r\n", b" z\r\n", b"\r", b"\n"),
        *(b"\r\n", b"2\r\n", b"hi", b"\r\n", b"0\r\n", b"\r\n", b"0", b"A: b\r\n", b"\0", b": ", b";x"),
    ]
)


@given(
    st.lists(FRAGMENTS | st.binary(max_size=3), max_size=14),
    st.sampled_from([b"GET", b"HEAD"]),
    st.booleans(),
)
def test_no_input_makes_two_answers_out_of_one(parts: list[bytes], method: bytes, ends: bool) -> None:
    """A browser reads what the gateway writes as one final answer with the same body, whatever came."""
    parser = AnswerParser()
    parser.expect_answer(method)
    writer = h11.Connection(h11.SERVER)
    writer.receive_data(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
    writer.next_event(), writer.next_event()
    written, body = b"", b""
    with contextlib.suppress(Refused):
        for part in [*filter(None, parts), *([b""] if ends else [])]:
            parser.receive(part)
            while (event := parser.next_event()) is not None:
                if isinstance(event, AnswerHead) and event.status < 200:
                    continue
                written += writer.send(as_h11(event)) or b""
                body += event if isinstance(event, bytes) else b""
    if not written:
        return
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(written)
    seen = []
    while not isinstance(event := reader.next_event(), type(h11.NEED_DATA) | type(h11.PAUSED)):
        seen.append(event)
        if isinstance(event, h11.EndOfMessage):
            break
    assert sum(isinstance(event, h11.Response) for event in seen) <= 1
    assert b"".join(event.data for event in seen if isinstance(event, h11.Data)) == body
    assert not parser.is_complete or isinstance(seen[-1], h11.EndOfMessage)
    assert reader.trailing_data[0] == b""


def as_h11(event: AnswerEvent) -> h11.Event:
    if isinstance(event, AnswerHead):
        return h11.Response(status_code=event.status, headers=event.headers, reason=event.reason)
    return h11.EndOfMessage() if isinstance(event, AnswerEnd) else h11.Data(data=event)


@given(st.lists(FRAGMENTS | st.binary(max_size=3), max_size=14), st.integers(1, 5), st.booleans())
def test_the_pieces_in_which_an_answer_arrives_change_nothing(
    parts: list[bytes], step: int, ends: bool
) -> None:
    data = b"".join(parts)
    results = []
    for size in (0, step):
        try:
            events, parser = read(data, ends=ends, step=size)
            results.append((events, parser.may_reuse))
        except Refused:
            results.append(None)
    assert results[0] == results[1]
