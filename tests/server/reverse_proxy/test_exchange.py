"""One request and its answer, between a browser without connection and targets of fake sessions."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.server.reverse_proxy.browsing import OK, FakeBrowser, asked, browse, keep_alive, kept, until_closed
from tests.support.fakes.edge import answer_with, open_edge, receive_until
from tests.support.fakes.fake_session import FarEnd
from tunnel_core.reasons import Reason
from tunnel_server.access.opener import NotOpened
from tunnel_server.reverse_proxy import exchange as exchange_module
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerHead
from tunnel_server.reverse_proxy.pool import TargetPool

CHUNKED = ("Transfer-Encoding", "chunked")


def upload(*pieces: bytes, headers: tuple[tuple[str, str], ...] = ()) -> FakeBrowser:
    length = str(sum(map(len, pieces)))
    return FakeBrowser(asked(("Content-Length", length), *headers, method="POST"), pieces)


async def test_path_and_query_arrive_as_they_were_sent() -> None:
    seen: list[bytes] = []
    async with open_edge() as edge:
        edge.attach("edge1", keep_alive(OK, seen=seen))
        async with kept(edge) as pool:
            for target in ("/a//b/%2F?B=1&a=2&&", "/%2e%2E/", "/?", "/;x=%00"):
                await browse(pool, FakeBrowser(asked(target=target)))
                assert seen[-1].startswith(b"GET " + target.encode() + b" HTTP/1.1\r\n")


async def test_all_interim_answers_go_on_in_their_order() -> None:
    hints = b"".join(b"HTTP/1.1 103 Early Hints\r\nLink: </%d>\r\n\r\n" % index for index in range(25))
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(b"HTTP/1.1 102 Processing\r\n\r\n", hints, OK))
        browser = await browse(TargetPool(edge.opener))
        assert browser.statuses == [102, *[103] * 25, 200]
        links = [event.headers for event in browser.sent if isinstance(event, AnswerHead)][1:26]
        assert links == [[(b"Link", b"</%d>" % index)] for index in range(25)]


async def test_trailers_go_both_ways() -> None:
    seen: list[bytes] = []
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 2\r\nTE: x\r\n\r\n"
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(answer, seen=seen, until=b"X-Sum: 1\r\n\r\n"))
        trailers = [(b"X-Sum", b"1"), (b"X-Forwarded-User", b"root")]
        browser = FakeBrowser(asked(CHUNKED, method="POST"), [b"abc", b"d"], trailers)
        await browse(TargetPool(edge.opener), browser)
        assert seen[0].endswith(b"\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert browser.sent[-1] == AnswerEnd(((b"X-Sum", b"2"),))


async def test_a_body_of_known_length_is_sent_without_chunks() -> None:
    seen: list[bytes] = []
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(OK, seen=seen, until=b"abcd"))
        await browse(TargetPool(edge.opener), upload(b"abc", b"d"))
        assert seen[0].endswith(b"\r\n\r\nabcd")
        assert b"Content-Length: 4\r\n" in seen[0]


@pytest.mark.parametrize("pieces", [[b"ab"], [b"abcdef"]])
async def test_a_body_of_another_length_than_announced_is_refused(pieces: list[bytes]) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK))
        session._agent = lambda far: until_closed(wait_for_ever, far)
        browser = FakeBrowser(asked(("Content-Length", "4"), method="POST"), pieces)
        with pytest.raises(NotOpened) as caught:
            await browse(TargetPool(edge.opener), browser)
        assert caught.value.reason is Reason.BAD_REQUEST
        assert session.streams[0].was_reset.is_set()


async def wait_for_ever(far: FarEnd) -> None:
    far.accept()
    async for _ in far.stream:
        pass


async def test_the_target_decides_whether_a_body_is_sent() -> None:
    no = b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n"
    seen: list[bytes] = []
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(no, seen=seen))
        browser = upload(b"abc", headers=(("Expect", "100-continue"),))
        await browse(TargetPool(edge.opener), browser)
        assert b"Expect: 100-continue\r\n" in seen[0]
        assert browser.statuses == [417]
        assert browser.asked_for_body == 0


async def test_the_100_of_the_target_goes_on_once(autojump_clock: trio.testing.MockClock) -> None:
    async def patient(far: FarEnd) -> None:
        far.accept()
        await receive_until(far.stream, b"\r\n\r\n")
        await far.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await receive_until(far.stream, b"abc") == b"abc"
        await far.stream.send_all(OK)
        await far.stream.send_eof()

    async with open_edge() as edge:
        edge.attach("edge1", patient)
        started = trio.current_time()
        browser = await browse(TargetPool(edge.opener), upload(b"abc", headers=(("Expect", "100-continue"),)))
        assert browser.statuses == [100, 200]
        assert trio.current_time() - started < exchange_module.CONTINUE_SECONDS


async def test_a_target_that_does_not_know_100_gets_the_body_after_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def late(far: FarEnd) -> None:
        far.accept()
        await receive_until(far.stream, b"abc")
        await far.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
        await far.stream.send_eof()

    async with open_edge() as edge:
        edge.attach("edge1", late)
        browser = await browse(TargetPool(edge.opener), upload(b"abc", headers=(("Expect", "100-continue"),)))
        assert browser.statuses == [100, 200]


@pytest.mark.parametrize(
    ("method", "answer", "has_length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", True),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", False),
    ],
)
async def test_answers_without_a_body_keep_the_connection(
    method: str, answer: bytes, has_length: bool
) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(answer, OK))
        async with kept(edge) as pool:
            browser = await browse(pool, FakeBrowser(asked(method=method)))
            head = browser.sent[0]
            assert isinstance(head, AnswerHead)
            assert ((b"Content-Length", b"7") in head.headers) is has_length
            assert browser.is_complete and not browser.body
            assert (await browse(pool)).body == b"hi"
            assert len(session.streams) == 1


async def test_a_range_passes_as_it_is() -> None:
    seen: list[bytes] = []
    part = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nhi"
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(part, seen=seen))
        ranged = FakeBrowser(asked(("Range", "bytes=0-1"), ("If-Range", '"x"')))
        browser = await browse(TargetPool(edge.opener), ranged)
        assert browser.statuses == [206]
        assert isinstance(browser.sent[0], AnswerHead)
        assert (b"Content-Range", b"bytes 0-1/9") in browser.sent[0].headers
        assert b"Range: bytes=0-1\r\nIf-Range: " in seen[0]


async def test_a_long_poll_waits_for_more_than_an_hour(autojump_clock: trio.testing.MockClock) -> None:
    async def slow(far: FarEnd) -> None:
        far.accept()
        await trio.sleep(3700)
        await far.stream.send_all(b"HTTP/1.1 102 Processing\r\n\r\n")
        await trio.sleep(exchange_module.ANSWER_SECONDS - 1)
        await far.stream.send_all(OK)
        await far.stream.send_eof()

    async with open_edge(seconds=100_000) as edge:
        edge.attach("edge1", slow)
        assert (await browse(TargetPool(edge.opener))).statuses == [102, 200]


async def test_a_target_that_is_silent_for_ever_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with open_edge(seconds=100_000) as edge:
        session = edge.attach("edge1", lambda far: until_closed(wait_for_ever, far))
        with pytest.raises(NotOpened) as caught:
            await browse(TargetPool(edge.opener))
        assert caught.value.reason is Reason.TARGET_TIMEOUT
        assert session.streams[0].ended_by is Reason.TARGET_TIMEOUT


async def test_a_browser_that_leaves_during_a_silent_answer_ends_the_stream() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", lambda far: until_closed(wait_for_ever, far))
        browser = FakeBrowser()
        browser.left.set()
        with pytest.raises(NotOpened) as caught:
            await browse(TargetPool(edge.opener), browser)
        assert caught.value.reason is Reason.USER_LEFT
        assert session.streams[0].ended_by is Reason.USER_LEFT


async def test_a_cut_answer_aborts_the_browser() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"))
        browser = FakeBrowser()
        with pytest.raises(NotOpened):
            await browse(TargetPool(edge.opener), browser)
        assert browser.aborted is Reason.TARGET_PROTOCOL
        assert not browser.is_complete


@pytest.mark.parametrize(
    ("method", "protocol", "body"), [("POST", "tcp", b'{"Tty":true}'), ("GET", "SPDY/3.1", b"")]
)
async def test_another_upgrade_is_raw_after_its_101(method: str, protocol: str, body: bytes) -> None:
    """``docker exec`` asks by POST with a body, ``kubectl exec`` for SPDY."""
    switching = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol.encode()
    seen: list[bytes] = []

    async def hijack(far: FarEnd) -> None:
        far.accept()
        seen.append(await receive_until(far.stream, b"\r\n\r\n" + body))
        await far.stream.send_all(switching + b"\0first")
        assert await receive_until(far.stream, b"\0typed\r\n\r\n") == b"early\0typed\r\n\r\n"
        await far.stream.send_all(b"\0last")
        await far.stream.send_eof()

    asking = [("Connection", "Upgrade"), ("Upgrade", protocol), ("Content-Length", str(len(body)))]
    near, far_end = trio.testing.memory_stream_pair()
    async with open_edge() as edge:
        edge.attach("edge1", hijack)
        browser = FakeBrowser(asked(*asking, method=method), [body])
        browser.raw, browser.early = near, b"early"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(browse, TargetPool(edge.opener), browser)
            assert await receive_until(far_end, b"\0first") == b"\0first"
            await far_end.send_all(b"\0typed\r\n\r\n")
            assert await receive_until(far_end, b"\0last") == b"\0last"
            await far_end.send_eof()
        assert browser.statuses == [101]
        assert isinstance(browser.sent[0], AnswerHead)
        assert browser.sent[0].headers == [(b"Upgrade", protocol.encode())]
        assert f"Upgrade: {protocol}\r\n".encode() in seen[0]
        assert edge.counters.closed_streams == {("web", "done"): 1}


@pytest.mark.parametrize("upgrade", [b"h2c", b"tcp, h2c", b""])
async def test_a_101_that_was_not_asked_for_is_refused(upgrade: bytes) -> None:
    switching = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % upgrade
    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(switching))
        asking = asked(("Connection", "Upgrade"), ("Upgrade", "tcp"))
        with pytest.raises(NotOpened) as caught:
            await browse(TargetPool(edge.opener), FakeBrowser(asking))
        assert caught.value.reason is Reason.TARGET_PROTOCOL
        assert session.streams[0].was_reset.is_set()


async def test_a_101_before_the_end_of_the_request_is_refused() -> None:
    switching = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(switching))
        asking = asked(("Connection", "Upgrade"), ("Upgrade", "tcp"), ("Content-Length", "9"), method="POST")
        with pytest.raises(NotOpened) as caught:
            await browse(TargetPool(edge.opener), FakeBrowser(asking, [b"abc", b""]))
        assert caught.value.reason is Reason.TARGET_PROTOCOL


async def test_events_go_on_as_they_come(autojump_clock: trio.testing.MockClock) -> None:
    async def ticking(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for index in range(3):
            await trio.sleep(100)
            await far.stream.send_all(b"data: %d\n\n" % index)
        await far.stream.send_eof()

    async with open_edge(seconds=1000) as edge:
        edge.attach("edge1", ticking)
        browser = FakeBrowser()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(browse, TargetPool(edge.opener), browser)
            await trio.sleep(1)
            assert browser.statuses == [200]
            for index in range(3):
                await trio.sleep(100)
                assert browser.body.endswith(b"data: %d\n\n" % index)
        assert browser.is_complete
