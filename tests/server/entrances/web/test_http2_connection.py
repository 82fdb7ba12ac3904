"""HTTP/2 towards browsers, over real sockets and TLS: what passes, what waits, and what is cut."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import h2.errors
import h2.events
import h2.settings
import hpack
import httpx
import pytest
import trio
import trio.testing

from tests.server.entrances.web.http2_client import HOST, PREFACE, frame, head, open_site
from tests.support.fakes.edge import answer_with, receive_all, receive_until, refuse_with
from tests.support.fakes.fake_session import FarEnd
from tests.support.pki import authority as pki
from tunnel_core.http.server import HeadLimits
from tunnel_core.reasons import Reason
from tunnel_core.streams.tls import TlsStream
from tunnel_server.entrances.web import http2_connection as module
from tunnel_server.entrances.web.http2_frames import RESETS

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Here: Yes\r\n\r\nhi"
CODES = h2.errors.ErrorCodes


async def test_httpx_speaks_http2_through_the_entrance(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        seen: list[bytes] = []
        site.edge.attach("edge1", answer_with(OK, seen=seen))
        context = ssl.create_default_context(cadata=pki.authority().roots_pem.decode())
        async with httpx.AsyncClient(http2=True, verify=context) as client:
            for number in range(3):
                answer = await client.get(
                    f"https://{site.listener.addresses[0]}/a//b%2Fc?n={number}",
                    headers={"Host": HOST},
                    extensions={"sni_hostname": HOST},
                )
                assert (answer.http_version, answer.status_code, answer.text) == ("HTTP/2", 200, "hi")
                assert answer.headers["x-here"] == "Yes"
        assert [head.partition(b" HTTP")[0] for head in seen] == [
            b"GET /a//b%%2Fc?n=%d" % n for n in range(3)
        ]


async def test_requests_of_one_connection_do_not_wait_for_each_other(tmp_path: Path) -> None:
    go_on = trio.Event()

    async def slow_first(far: FarEnd) -> None:
        far.accept()
        request = await receive_until(far.stream, b"\r\n\r\n")
        if b"/slow" in request:
            await go_on.wait()
        await far.stream.send_all(OK)

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", slow_first)
        client = await site.client()
        slow, quick = await client.ask(head("/slow")), await client.ask(head("/quick"))
        assert (await client.answer(quick))[1] == b"hi"
        go_on.set()
        assert (await client.answer(slow))[0][":status"] == "200"


async def test_large_answers_share_the_connection(tmp_path: Path) -> None:
    size = 400_000

    async with open_site(tmp_path) as site:
        site.edge.attach(
            "edge1", answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, bytes(size))
        )
        client = await site.client()
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
        client.h2.increment_flow_control_window(4_000_000)
        asked = [await client.ask(head(f"/{number}")) for number in range(6)]
        for stream_id in asked:
            assert len((await client.answer(stream_id))[1]) == size


async def test_a_refusal_is_a_page_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", refuse_with(Reason.DIAL_REFUSED, "nobody listens"))
        client = await site.client()
        for _ in range(2):
            found, body = await client.answer(await client.ask(head(more=[("accept", "text/html")])))
            assert found[":status"] == "502"
            assert found["qanat-reason"] == "dial_refused"
            assert b"<dt>Node</dt><dd>edge1</dd>" in body
        found, body = await client.answer(await client.ask(head()))
        assert body == b"dial_refused: nobody listens\n"


async def test_the_end_of_the_connection_ends_its_requests(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        session = site.edge.attach("edge1", lambda far: silent(far))
        client = await site.client()
        for _ in range(3):
            await client.ask(head())
        while len(session.streams) < 3:
            await trio.testing.wait_all_tasks_blocked()
        await client.stream.aclose()
        for stream in list(session.streams.values()):
            await stream.was_reset.wait()
            assert stream.ended_by is Reason.USER_LEFT


async def silent(far: FarEnd) -> None:
    far.accept()
    await far.near.was_reset.wait()


MALFORMED = {
    "upper case": head(more=[("X-Upper", "a")]),
    "line end in a value": head(more=[("x", "a\r\nX-Injected: b")]),
    "NUL in a value": head(more=[("x", "a\0b")]),
    "blank at the end of a value": head(more=[("x", "a ")]),
    "line end in a name": head(more=[("x\r\ny", "a")]),
    "colon in a name": head(more=[("x:y", "a")]),
    "connection": head(more=[("connection", "close")]),
    "transfer-encoding": head(more=[("transfer-encoding", "chunked")]),
    "upgrade": head(more=[("upgrade", "websocket")]),
    "te": head(more=[("te", "gzip")]),
    "another host": head(more=[("host", "blue--edge1.edge.example")]),
    "two hosts": head(more=[("host", HOST), ("host", HOST)]),
    "two lengths": head(more=[("content-length", "0"), ("content-length", "0")]),
    "pseudo-header behind a header": [("x", "y"), *head()],
    "two paths": head(more=[(":path", "/b")]),
    "unknown pseudo-header": head(more=[(":status", "200")]),
    "blank in the path": head("/a b"),
    "line end in the path": head("/a HTTP/1.1\r\nHost: evil\r\n\r\nGET /"),
    "no path": [field for field in head() if field[0] != ":path"],
    "empty path": head(""),
    "no scheme": [field for field in head() if field[0] != ":scheme"],
    "method": head(method="GET / HTTP/1.1"),
    "protocol without CONNECT": head(more=[(":protocol", "websocket")]),
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_head_reaches_no_target(tmp_path: Path, fields: list[tuple[str, str]]) -> None:
    async with open_site(tmp_path) as site:
        session = site.edge.attach("edge1", answer_with(OK))
        client = await site.client()
        stream_id = await client.ask(fields)
        reset = await client.wait(h2.events.StreamReset, stream_id)
        assert isinstance(reset, h2.events.StreamReset)
        assert reset.error_code == CODES.PROTOCOL_ERROR
        assert not session.streams
        assert (await client.answer(await client.ask(head())))[1] == b"hi"  # the connection goes on


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (head("/", "CONNECT")[:1] + head()[2:3], "405"),
        (head("/", "TRACE"), "405"),
        (head(more=[("cookie", "a" * 9000)]), "431"),
        (head(more=[(f"x-{number}", "a") for number in range(101)]), "431"),
        (head(host="evil.example"), "404"),
        (head(host=f"{HOST}."), "400"),
        (head(host=f"user@{HOST}"), "400"),
        (head(more=[("origin", "https://evil.example")]), "403"),
    ],
)
async def test_a_valid_request_that_is_not_served(
    tmp_path: Path, fields: list[tuple[str, str]], status: str
) -> None:
    async with open_site(tmp_path, HeadLimits(8 * 1024)) as site:
        session = site.edge.attach("edge1", answer_with(OK))
        client = await site.client()
        found, _ = await client.answer(await client.ask(fields))
        assert found[":status"] == status
        assert found["qanat-reason"]
        assert not session.streams


async def test_30_kb_of_cookies_and_a_url_of_20_kb_pass(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", answer_with(OK, seen=seen))
        client = await site.client()
        cookies = [("cookie", f"c{number}={'x' * 1000}") for number in range(30)]
        assert (await client.answer(await client.ask(head("/" + "u" * 20_000, more=cookies))))[1] == b"hi"
        assert seen[0].lower().count(b"\r\ncookie: ") == 1  # HTTP/1.1 allows one line
        assert b"; c29=" in seen[0]


def refusals(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return reason and sentence of each line about a refused peer."""
    fields = [vars(record)["fields"] for record in caplog.records if record.name == "qanat.refusals"]
    return [(field["reason"], field["detail"]) for field in fields]


async def read_to_the_end(stream: TlsStream) -> None:
    """Receive until the server closes the connection, in whichever way."""
    with contextlib.suppress(trio.BrokenResourceError):
        await receive_all(stream)


FLOODS = {
    "PING": frame(6, 0, 0, bytes(8)) * 3000,
    "SETTINGS": frame(4, 0, 0) * 3000,
    "PRIORITY": frame(2, 0, 3, bytes([0, 0, 0, 0, 1])) * 3000,
    "WINDOW_UPDATE": frame(8, 0, 0, (1).to_bytes(4, "big")) * 5000,
    "unknown": frame(0xBE, 0, 0) * 3000,
    "CONTINUATION": frame(1, 0, 1, b"\x00\x01a\x01b") + frame(9, 0, 1, b"\x00\x01a\x01b") * 3000,
    "head": frame(1, 0, 1, b"\x00\x01a\x01b" * 3000) + frame(9, 0, 1, b"\x00\x01a\x01b" * 3000) * 20,
    # An entry of 4,000 bytes in the table, named again in each byte: 64 MB of header list.
    "HPACK bomb": frame(1, 4, 1, b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000 + b"\xbe" * 10_000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_ends_the_connection(
    tmp_path: Path, flood: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(tmp_path) as site:
        session = site.edge.attach("edge1", answer_with(OK))
        stream = await site.open()
        await stream.send_all(PREFACE + frame(4, 0, 0))

        async def flood_it() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(flood)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood_it)
            await read_to_the_end(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert [reason for reason, _ in refusals(caplog)] == ["frame_flood"]
        assert not session.streams


async def test_rapid_reset_ends_the_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", lambda far: silent(far))
        client = await site.client()
        with pytest.raises((AssertionError, trio.BrokenResourceError)):
            for _ in range(600):
                stream_id = client.h2.get_next_available_stream_id()
                client.h2.send_headers(stream_id, head(), end_stream=True)
                client.h2.reset_stream(stream_id)
            await client.send()
            while True:
                assert await client.receive()
        await trio.testing.wait_all_tasks_blocked()
        ((reason, detail),) = refusals(caplog)
        assert (reason, "too many requests were reset" in detail) == ("frame_flood", True)


@pytest.mark.parametrize("where", ["head", "trailers", "tasks"])
async def test_resets_that_the_browser_causes_end_the_connection_too(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [("x-sum", "a ")]  # a blank at the end
    if where == "tasks":
        monkeypatch.setattr(module, "_MAX_TASKS", 0)
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", lambda far: silent(far))
        client = await site.client()
        asked, is_open = 0, True
        while is_open and asked < 2 * RESETS:
            for _ in range(50):
                stream_id = client.h2.get_next_available_stream_id()
                is_head = where != "trailers"
                client.h2.send_headers(stream_id, head(more=wrong if is_head else ()), end_stream=is_head)
                if not is_head:
                    client.h2.send_headers(stream_id, wrong, end_stream=True)
            asked += 50
            await client.send()
            while is_open and sum(isinstance(e, h2.events.StreamReset) for e in client.events) < asked:
                is_open = await client.receive()
        assert not is_open
        await trio.testing.wait_all_tasks_blocked()
        ((reason, detail),) = refusals(caplog)
        assert (reason, "too many requests were reset" in detail) == ("frame_flood", True)


async def test_a_refused_head_that_is_reset_at_once_ends_nothing_else(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", answer_with(OK))
        client = await site.client()
        stream_id = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream_id, head("/", "CONNECT")[:1] + head()[2:3], end_stream=True)
        client.h2.reset_stream(stream_id)
        await client.send()  # both frames in one TLS record
        assert (await client.answer(await client.ask(head())))[1] == b"hi"


async def test_a_page_that_is_left_is_no_rapid_reset(tmp_path: Path) -> None:
    left = 180

    async def first_silent(far: FarEnd) -> None:
        nonlocal left
        left -= 1
        await (silent(far) if left >= 0 else answer_with(OK)(far))

    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", first_silent)
        client = await site.client()
        for _ in range(2):
            for stream_id in [await client.ask(head()) for _ in range(90)]:
                client.h2.reset_stream(stream_id)
            await client.send()
        assert (await client.answer(await client.ask(head())))[1] == b"hi"


async def test_more_streams_than_announced_end_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(tmp_path) as site:
        session = site.edge.attach("edge1", lambda far: silent(far))
        stream = await site.open()
        encoder = hpack.Encoder()
        asks = [frame(1, 5, 2 * number + 1, encoder.encode(head())) for number in range(150)]
        await stream.send_all(PREFACE + frame(4, 0, 0) + b"".join(asks))
        await read_to_the_end(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert len(session.streams) <= 100
        assert [reason for reason, _ in refusals(caplog)] == ["protocol_error"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE + frame(0, 0, 0, b"data on stream 0"),
        PREFACE + frame(4, 0, 0, b"odd"),
        PREFACE + frame(4, 0, 0) + frame(1, 4, 2, b"\x82"),  # an even stream
        PREFACE + frame(4, 0, 0) + frame(1, 4, 1, b"\xff\xff\xff\xff\xff"),  # no HPACK
        PREFACE + frame(4, 0, 0) + frame(9, 4, 1, b"\x82"),  # CONTINUATION of nothing
        PREFACE + frame(4, 0, 0) + (2**24 - 1).to_bytes(3, "big") + bytes(6) + bytes(30_000),
        PREFACE + frame(4, 0, 0) + frame(5, 4, 1, bytes(8)),  # PUSH_PROMISE of a client
    ],
)
async def test_a_violation_of_the_protocol_ends_the_connection_alone(
    tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", answer_with(OK))
        stream = await site.open()
        await stream.send_all(sent)
        await read_to_the_end(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert [reason for reason, _ in refusals(caplog)] == ["protocol_error"]
        assert "Traceback" not in caplog.text
        other = await site.client()
        assert (await other.answer(await other.ask(head())))[1] == b"hi"


async def test_an_idle_connection_gets_goaway(tmp_path: Path) -> None:
    async with open_site(tmp_path, HeadLimits(head_seconds=0.05, idle_seconds=0.05)) as site:
        site.edge.attach("edge1", answer_with(OK))
        fresh = await site.client()
        ended = await fresh.wait(h2.events.ConnectionTerminated)
        assert isinstance(ended, h2.events.ConnectionTerminated)
        assert ended.error_code == CODES.NO_ERROR


async def test_a_shutdown_sends_goaway(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.edge.attach("edge1", lambda far: silent(far))
        client = await site.client()
        await client.ask(head())
        await client.wait(h2.events.SettingsAcknowledged)
        site.edge.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await client.wait(h2.events.ConnectionTerminated)
