"""One request over HTTP/2: its body, its answer, and what each of the two waits for."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import h2.errors
import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from tests.server.entrances.web.http2_client import head, open_site
from tests.support.fakes.edge import answer_with, echo, receive_until
from tests.support.fakes.fake_session import FarEnd
from tunnel_core.reasons import Reason
from tunnel_server.entrances.web import http2_connection as module
from tunnel_server.entrances.web.http2_browser import Http2Browser
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerHead, BrowserRequest, Headers

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Here: Yes\r\n\r\nhi"
CODES = h2.errors.ErrorCodes


async def silent(far: FarEnd) -> None:
    far.accept()
    await far.near.was_reset.wait()


class FakeOwner:
    """A connection whose socket is blocked until ``unblocked`` is set. ``sent`` has statuses and trailers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.unblocked = trio.Event()

    def send_headers(self, stream_id: int, fields: Headers, *, is_end: bool) -> None:
        self.sent.append(fields[0][1])

    async def send_data(self, browser: Http2Browser, data: bytes, *, is_end: bool) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def is_blocked(self) -> bool:
        return not self.unblocked.is_set()

    async def wait_unblocked(self, browser: Http2Browser) -> None:
        await self.unblocked.wait()

    def write(self) -> None:
        pass

    def open_window(self, stream_id: int, size: int) -> None:
        pass

    def take_growth(self, size: int) -> int:
        return 0

    def reset(self, stream_id: int, *, is_complete: bool) -> None:
        pass


def browser_of(owner: FakeOwner) -> Http2Browser:
    request = BrowserRequest(
        method=b"POST",
        scheme=b"https",
        authority=b"red--edge1.localhost",
        target=b"/",
        headers=[],
        body_length=None,
        source="127.0.0.1",
    )
    return Http2Browser(owner, 1, request, 60.0)


async def test_tiny_frames_take_no_more_memory_than_their_bytes() -> None:
    browser = browser_of(FakeOwner())
    tracemalloc.start()
    try:
        for number in range(20_000):
            browser.feed(number.to_bytes(2, "big"), 2)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 40_000
    assert await browser.receive() == b"".join(number.to_bytes(2, "big") for number in range(20_000))


async def test_heads_wait_for_a_blocked_socket_and_interim_ones_are_dropped() -> None:
    owner = FakeOwner()
    browser = browser_of(owner)
    async with trio.open_nursery() as nursery:
        await browser.send(AnswerHead(103, []), AnswerHead(100, []), AnswerHead(102, []))
        nursery.start_soon(browser.send, AnswerHead(200, []), b"hi", AnswerEnd(((b"x-sum", b"1"),)))
        await trio.testing.wait_all_tasks_blocked()
        assert (owner.sent, browser.has_answered) == ([b"100"], False)
        owner.unblocked.set()
    assert owner.sent == [b"100", b"200", b"1"]


async def test_trailers_and_switches_wait_for_a_blocked_socket() -> None:
    owner = FakeOwner()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(browser_of(owner).switch, AnswerHead(101, []))
        nursery.start_soon(browser_of(owner).send, AnswerEnd(((b"x-sum", b"1"),)))
        await trio.testing.wait_all_tasks_blocked()
        assert not owner.sent
        owner.unblocked.set()
    assert sorted(owner.sent) == [b"1", b"200"]


async def test_heads_behind_a_browser_that_reads_nothing_stay_with_their_targets(tmp_path: Path) -> None:
    size = 8_000_000
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </%b>\r\n\r\n" % (b"a" * 10_000)

    async def by_path(far: FarEnd) -> None:
        far.accept()
        if b"/large" in await receive_until(far.stream, b"\r\n\r\n"):
            await far.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        else:
            await far.stream.send_all(early * 50 + OK)

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", by_path)
        client = await site.client()
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: size})
        client.h2.increment_flow_control_window(size)
        large = await client.ask(head("/large"))
        await client.wait(h2.events.ResponseReceived, large)
        await trio.testing.wait_all_tasks_blocked()  # the kernel holds all it can
        behind = [await client.ask(head("/behind")) for _ in range(2)]
        client.h2.reset_stream(behind[0])
        await client.send()
        await trio.testing.wait_all_tasks_blocked()
        for stream_id in (behind[1], large):  # no window is opened meanwhile
            await client.wait(h2.events.StreamEnded, stream_id)
        assert (client.body_of(behind[1]), len(client.body_of(large))) == (b"hi", size)
        assert not any(isinstance(event, h2.events.InformationalResponseReceived) for event in client.events)


async def test_an_answer_streams_as_it_comes(tmp_path: Path) -> None:
    go_on = trio.Event()

    async def drip(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nfirst\r\n"
        )
        await go_on.wait()
        await far.stream.send_all(b"6\r\nsecond\r\n0\r\n\r\n")

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", drip)
        client = await site.client()
        stream_id = await client.ask(head())
        await client.wait(h2.events.DataReceived)
        assert client.body_of(stream_id) == b"first"
        assert "transfer-encoding" not in client.head_of(stream_id)
        go_on.set()
        assert (await client.answer(stream_id))[1] == b"firstsecond"


async def test_a_body_streams_up_and_the_window_follows_the_target(tmp_path: Path) -> None:
    """The target has taken nothing: the browser may send its first window, and no more."""
    go_on, total = trio.Event(), 3_000_000
    received = 0

    async def upload(far: FarEnd) -> None:
        nonlocal received
        far.accept()
        await go_on.wait()
        data = await receive_until(far.stream, b"\r\n\r\n")
        received = len(data.partition(b"\r\n\r\n")[2])
        while received < total:
            received += len(await far.stream.receive_some())
        await far.stream.send_all(OK)

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", upload)
        client = await site.client()
        await client.wait(h2.events.RemoteSettingsChanged)
        stream_id = await client.ask(
            head("/", "POST", more=[("content-length", str(total))]), b"", is_end=False
        )
        sent = 0

        async def send_more() -> None:
            nonlocal sent
            while sent < total and (window := client.h2.local_flow_control_window(stream_id)):
                piece = bytes(min(window, 16_384, total - sent))
                client.h2.send_data(stream_id, piece, end_stream=sent + len(piece) == total)
                sent += len(piece)
                await client.send()

        await send_more()
        first = sent
        assert first <= 512 * 1024  # the window, and what the stream to the target carries
        go_on.set()
        while sent < total:
            assert await client.receive()
            await send_more()
        assert (await client.answer(stream_id))[0][":status"] == "200"
        assert received == total


async def test_a_stalled_upload_stalls_no_other_request(tmp_path: Path) -> None:
    async def by_path(far: FarEnd) -> None:
        far.accept()
        if b"/stalled" in await receive_until(far.stream, b"\r\n\r\n"):
            await far.near.was_reset.wait()
        await far.stream.send_all(OK)

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", by_path)
        client = await site.client()
        await client.wait(h2.events.RemoteSettingsChanged)
        for _ in range(20):  # more than the window of the connection in all
            stalled = await client.ask(head("/stalled", "POST"), b"", is_end=False)
            for _ in range(4):
                window = client.h2.local_flow_control_window(stalled)
                if not window:
                    await client.receive()
                    window = client.h2.local_flow_control_window(stalled)
                client.h2.send_data(stalled, bytes(min(window, 16_000)))
                await client.send()
        assert (await client.answer(await client.ask(head("/quick"))))[1] == b"hi"


async def test_a_slow_reader_of_one_answer_stalls_itself_alone(tmp_path: Path) -> None:
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)

    async def by_path(far: FarEnd) -> None:
        far.accept()
        request = await receive_until(far.stream, b"\r\n\r\n")
        await far.stream.send_all(large if b"/large" in request else OK)

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", by_path)
        client = await site.client()
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        client.h2.increment_flow_control_window(1_000_000)
        slow = await client.ask(head("/large"))
        while len(client.body_of(slow)) < 1000:
            assert await client.receive()
        quick = await client.ask(head("/quick"))
        await client.wait(h2.events.StreamEnded, quick)
        assert client.body_of(quick) == b"hi"
        assert len(client.body_of(slow)) == 1000
        assert len((await client.answer(slow))[1]) == 1_000_000


async def test_head_and_empty_answers_end_with_their_head(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"))
        client = await site.client()
        found, body = await client.answer(await client.ask(head("/", "HEAD")))
        assert (found[":status"], found["content-length"], body) == ("200", "99", b"")


async def test_an_answer_cut_short_is_reset(tmp_path: Path) -> None:
    async def cut(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        await far.stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        far.reset(Reason.TARGET_RESET, "")

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", cut)
        client = await site.client()
        stream_id = await client.ask(head())
        reset = await client.wait(h2.events.StreamReset, stream_id)
        assert isinstance(reset, h2.events.StreamReset)
        assert reset.error_code == CODES.INTERNAL_ERROR


async def test_a_reset_by_the_browser_resets_the_stream_to_the_target(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        session = site.edge.attach("edge1", lambda far: silent(far))
        client = await site.client()
        stream_id = await client.ask(head())
        await session.was_opened.wait()
        client.h2.reset_stream(stream_id, CODES.CANCEL)
        await client.send()
        await session.streams[0].was_reset.wait()
        assert session.streams[0].ended_by is Reason.USER_LEFT


async def test_a_websocket_over_http2_is_translated(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def socket(far: FarEnd) -> None:
        far.accept()
        seen.append(await receive_until(far.stream, b"\r\n\r\n"))
        await far.stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: y\r\nSec-WebSocket-Protocol: mqtt\r\n\r\nserver-first"
        )
        await echo(far)

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", socket)
        client = await site.client()
        settings = await client.wait(h2.events.RemoteSettingsChanged)
        assert isinstance(settings, h2.events.RemoteSettingsChanged)
        enabled = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
        assert settings.changed_settings[enabled].new_value == 1
        more = [
            (":protocol", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "mqtt"),
        ]
        stream_id = await client.ask(head("/mqtt?a=1", "CONNECT", more=more), b"", is_end=False)
        await client.wait(h2.events.ResponseReceived, stream_id)
        found = client.head_of(stream_id)
        assert found[":status"] == "200"
        assert found["sec-websocket-protocol"] == "mqtt"
        assert not {"upgrade", "connection", "sec-websocket-accept"} & set(found)
        assert seen[0].startswith(b"GET /mqtt?a=1 HTTP/1.1\r\n")
        assert b"\r\nUpgrade: websocket\r\n" in seen[0]
        assert b"\r\nsec-websocket-key: " in seen[0].lower()
        for word in (b"ping", b"pong"):
            client.h2.send_data(stream_id, word)
            await client.send()
        while client.body_of(stream_id) != b"server-firstpingpong":
            assert await client.receive()
        client.h2.end_stream(stream_id)
        await client.send()
        await client.wait(h2.events.StreamEnded, stream_id)


async def test_a_browser_that_takes_nothing_of_an_answer_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.05)
    async with open_site(tmp_path) as site:
        session = site.edge.attach(
            "edge1", answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000))
        )
        client = await site.client()
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        stream_id = await client.ask(head())
        await client.wait(h2.events.StreamReset, stream_id)
        await session.streams[0].was_reset.wait()
