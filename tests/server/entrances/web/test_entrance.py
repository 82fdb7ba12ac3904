"""The web entrance, over real sockets to fake sessions."""

from __future__ import annotations

import contextlib
import re
import socket

import pytest
import trio
import trio.testing

from tests.support.fakes.edge import (
    Edge,
    answer_with,
    echo,
    never,
    open_edge,
    receive_all,
    receive_until,
    refuse_with,
)
from tests.support.fakes.fake_session import Agent, FarEnd
from tests.support.fakes.granting import grant
from tunnel_core.config.types import ServiceName
from tunnel_core.names import node_alias
from tunnel_core.reasons import Reason
from tunnel_core.streams.sockets import RESET_ON_CLOSE
from tunnel_core.wire.frames import Service
from tunnel_server.auth.access_rules import AccessChange
from tunnel_server.reverse_proxy import exchange as exchange_module
from tunnel_server.web_config import HostMode, WebService

HOST = b"Host: red--edge1.localhost:7003\r\n"
GET = b"GET /flows?a=1 HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: y\r\n\r\n"
)
ASK_SWITCH = (
    b"GET /comms HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def browse(edge: Edge) -> trio.SocketStream:
    web = edge.web()
    return await edge.dial(await edge.listen("web", web.serve))


async def test_one_connection_serves_many_requests() -> None:
    async with open_edge() as edge:
        seen: list[bytes] = []
        session = edge.attach("edge1", answer_with(OK, seen=seen))
        browser = await browse(edge)
        for _ in range(3):
            await browser.send_all(GET)
            answer = await receive_until(browser, b"hi")
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert len(session.streams) == 3
        assert session.streams[0].target == "red"
        assert session.streams[0].target_tls
        assert session.streams[0].entrance == "web"  # agents of version 0.1.0 use this name
        assert seen[0].startswith(b"GET /flows?a=1 HTTP/1.1\r\nHost: red--edge1.localhost:7003\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.closed_streams == {("web", "done"): 3}


@pytest.mark.parametrize(
    ("settings", "host", "location"),
    [
        ((), b"localhost:1880", b"http://red--edge1.localhost:7003/dir/"),
        (
            (WebService(name=ServiceName("red"), host=HostMode.KEEP, forwarded=True),),
            b"red--edge1.localhost:7003",
            b"http://localhost:1880/dir/",
        ),
        ((WebService(name=ServiceName("other"), host=HostMode.KEEP),), b"localhost:1880", None),
    ],
    ids=["rewrite", "keep", "other"],
)
async def test_what_a_service_reads_and_where_its_redirects_lead(
    settings: tuple[WebService, ...], host: bytes, location: bytes | None
) -> None:
    redirect = b"HTTP/1.1 301 Moved\r\nLocation: http://localhost:1880/dir/\r\nContent-Length: 2\r\n\r\nhi"
    seen: list[bytes] = []
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(redirect, seen=seen), Service("red", "http", "localhost:1880"))
        web = edge.web(services=settings)
        browser = await edge.dial(await edge.listen("web", web.serve))
        await browser.send_all(GET)
        answer = await receive_until(browser, b"hi")
        assert b"\r\nHost: %b\r\n" % host in seen[0]
        assert (b"X-Forwarded-For: 127.0.0.1" in seen[0]) is (host != b"localhost:1880")
        assert location is None or b"\r\nLocation: %b\r\n" % location in answer


async def test_the_head_is_there_before_the_dial_is_answered() -> None:
    got = trio.Event()

    async def slow_dial(far: FarEnd) -> None:
        await receive_until(far.stream, b"\r\n\r\n")
        got.set()
        far.accept()
        await far.stream.send_all(OK)

    async with open_edge() as edge:
        edge.attach("edge1", slow_dial)
        browser = await browse(edge)
        await browser.send_all(GET)
        await got.wait()
        await receive_until(browser, b"hi")


async def test_an_answer_streams_as_it_comes() -> None:
    go_on = trio.Event()

    async def drip(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nfirst\r\n"
        )
        await go_on.wait()
        await far.stream.send_all(b"6\r\nsecond\r\n0\r\n\r\n")

    async with open_edge() as edge:
        edge.attach("edge1", drip)
        browser = await browse(edge)
        await browser.send_all(GET)
        assert b"second" not in await receive_until(browser, b"first")
        go_on.set()
        await receive_until(browser, b"second\r\n0\r\n\r\n")


async def test_a_body_streams_up_and_is_framed_anew() -> None:
    seen: list[bytes] = []
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(OK, seen=seen, until=b"0\r\n\r\n"))
        browser = await browse(edge)
        await browser.send_all(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        await browser.send_all(b"3;ext=1\r\nabc\r\n")
        await browser.send_all(b"0\r\nTrailer: x\r\n\r\n")
        await receive_until(browser, b"hi")
        assert b"abc" in seen[0]
        assert b"ext=1" not in seen[0]
        assert b"Trailer" not in seen[0]


async def test_expect_continue_is_answered_here_if_the_target_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange_module, "CONTINUE_SECONDS", 0.05)
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(OK, until=b"xyz"))
        browser = await browse(edge)
        await browser.send_all(
            b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        assert (await receive_until(browser, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await browser.send_all(b"xyz")
        await receive_until(browser, b"hi")


async def test_an_early_answer_to_a_large_upload_arrives() -> None:
    too_large = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!"
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(too_large))
        browser = await browse(edge)
        await browser.send_all(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\nabc")
        assert (await receive_until(browser, b"no!")).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
async def test_an_upgrade_with_an_announced_body_is_refused(
    framing: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(SWITCH))
        browser = await browse(edge)
        await browser.send_all(ASK_SWITCH.replace(b"\r\n\r\n", b"\r\n" + framing + b"\r\n\r\n"))
        answer = await receive_until(browser, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 a request for a WebSocket has no body")
        assert "Traceback" not in caplog.text


async def test_another_upgrade_with_a_body_is_an_ordinary_request() -> None:
    async with open_edge() as edge:
        seen: list[bytes] = []
        edge.attach("edge1", answer_with(OK, seen=seen, until=b"abc"))
        browser = await browse(edge)
        for _ in range(2):
            await browser.send_all(
                b"POST / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: AA\r\nContent-Length: 3\r\n\r\nabc"
            )
            assert (await receive_until(browser, b"hi")).startswith(b"HTTP/1.1 200 ")
        assert len(seen) == 2 and not any(b"pgrade" in request for request in seen)


@pytest.mark.parametrize("is_asked", [False, True])
async def test_a_target_that_switches_unasked_is_a_bad_target(
    is_asked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """This holds also while the body of the request arrives."""
    ask = b"Connection: Upgrade\r\nUpgrade: h2c\r\n" if is_asked else b""
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(SWITCH))
        browser = await browse(edge)
        await browser.send_all(b"POST / HTTP/1.1\r\n" + HOST + ask + b"Content-Length: 9\r\n\r\nabc")
        assert (await receive_until(browser, b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
        assert "Traceback" not in caplog.text


async def test_a_form_of_another_site_is_refused_without_fetch_metadata() -> None:
    """Browsers send Fetch Metadata only to https and to localhost, not to a plain domain of the operator."""
    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(OK))
        web = edge.web("edge.example")
        browser = await edge.dial(await edge.listen("web", web.serve))
        await browser.send_all(
            b"POST /reboot HTTP/1.1\r\nHost: red--edge1.edge.example\r\nOrigin: http://evil.example\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        assert (await receive_until(browser, b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        assert not session.streams


async def test_a_websocket_moves_raw_bytes_and_loses_none_that_were_read_ahead() -> None:
    async def socket(far: FarEnd) -> None:
        far.accept()
        await receive_until(far.stream, b"\r\n\r\n")
        await far.stream.send_all(SWITCH + b"server-first")
        await echo(far)

    async with open_edge() as edge:
        edge.attach("edge1", socket)
        browser = await browse(edge)
        await browser.send_all(ASK_SWITCH + b"client-first")
        answer = await receive_until(browser, b"client-first")
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert rest == b"server-firstclient-first"
        await browser.send_all(b"ping")
        assert await receive_until(browser, b"ping") == b"ping"
        await browser.send_eof()
        assert await receive_all(browser) == b""


async def test_a_websocket_may_be_refused_with_an_ordinary_answer() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"))
        browser = await browse(edge)
        await browser.send_all(ASK_SWITCH)
        assert (await receive_until(browser, b"no")).startswith(b"HTTP/1.1 403 No\r\n")


async def test_an_unrequested_protocol_switch_is_502() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(SWITCH))
        browser = await browse(edge)
        await browser.send_all(GET)
        assert (await receive_all(browser)).startswith(b"HTTP/1.1 502 ")


async def test_a_refusal_is_a_page_for_people_and_text_for_programs() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", refuse_with(Reason.TARGET_NOT_ALLOWED, "<b>not</b> allowed by agent.toml"))
        browser = await browse(edge)
        await browser.send_all(b"GET / HTTP/1.1\r\n" + HOST + b"Accept: text/html\r\n\r\n")
        page = await receive_until(browser, b"</html>")
        assert page.startswith(b"HTTP/1.1 403 ")
        assert b"&lt;b&gt;not&lt;/b&gt; allowed by agent.toml" in page
        assert b"target_not_allowed" in page
        assert b"<b>not" not in page.partition(b"\r\n\r\n")[2]
        await browser.send_all(GET)
        text = await receive_all(browser)
        assert text.startswith(b"HTTP/1.1 403 ")
        assert text.endswith(b"target_not_allowed: <b>not</b> allowed by agent.toml\n")


async def test_a_stream_lost_before_the_answer_is_502_and_nothing_is_sent_again() -> None:
    async def vanish(far: FarEnd) -> None:
        far.accept()
        await receive_until(far.stream, b"pay")
        far.reset(Reason.SESSION_LOST, "the session with the agent was lost")

    async with open_edge() as edge:
        session = edge.attach("edge1", vanish)
        browser = await browse(edge)
        await browser.send_all(b"POST /pay HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\npay")
        assert (await receive_all(browser)).startswith(b"HTTP/1.1 502 the session with the agent was lost")
        assert len(session.streams) == 1


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
async def test_an_answer_cut_short_does_not_look_whole(head: bytes) -> None:
    async def cut(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(head + b"abc")
        await far.stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        far.reset(Reason.TARGET_RESET, "")

    async with open_edge() as edge:
        edge.attach("edge1", cut)
        browser = await browse(edge)
        await browser.send_all(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(browser)


@pytest.mark.parametrize("agent", [never, lambda far: silent(far)], ids=["never", "silent"])
async def test_a_browser_that_breaks_the_connection_resets_the_stream(agent: Agent) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", agent)
        browser = await browse(edge)
        await browser.send_all(GET)
        await session.was_opened.wait()
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        await browser.aclose()
        await session.streams[0].was_reset.wait()
        assert session.streams[0].ended_by is Reason.USER_LEFT


async def test_a_browser_that_closed_is_noticed_by_what_is_sent_to_it() -> None:
    go_on = trio.Event()

    async def drip(far: FarEnd) -> None:
        await silent_until(far, go_on)
        while not far.near.was_reset.is_set():
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await far.stream.send_all(b"data: x\n\n")
            await trio.testing.wait_all_tasks_blocked()

    async with open_edge() as edge:
        session = edge.attach("edge1", drip)
        browser = await browse(edge)
        await browser.send_all(GET)
        await receive_until(browser, b"hello")
        await browser.aclose()
        go_on.set()
        await session.streams[0].was_reset.wait()
        assert session.streams[0].ended_by is Reason.USER_LEFT


async def test_a_browser_that_closed_is_noticed_by_keepalive_while_nothing_is_sent() -> None:
    """TCP does not report a client that closed both halves, until its kernel forgot the connection."""
    async with open_edge() as edge:
        session = edge.attach("edge1", lambda far: silent(far))
        listener = await edge.listen("web", edge.web().serve)
        for bound in listener._sockets:
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                bound.setsockopt(socket.IPPROTO_TCP, option, 1)
        browser = await edge.dial(listener)
        browser.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # 60 s otherwise
        await browser.send_all(GET)
        await receive_until(browser, b"hello")
        await browser.aclose()
        await session.streams[0].was_reset.wait()
        assert session.streams[0].ended_by is Reason.USER_LEFT


async def test_a_client_that_ends_its_input_behind_the_request_gets_the_answer() -> None:
    go_on = trio.Event()

    async def late(far: FarEnd) -> None:
        far.accept()
        await receive_until(far.stream, b"\r\n\r\n")
        await go_on.wait()
        await far.stream.send_all(OK)

    async with open_edge() as edge:
        edge.attach("edge1", late)
        browser = await browse(edge)
        await browser.send_all(GET + GET)
        await browser.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.01)
        go_on.set()
        answers = await receive_all(browser)
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.closed_streams == {("web", "done"): 2}


async def silent_until(far: FarEnd, event: trio.Event) -> None:
    """Begin an answer and then send nothing, as an event stream does."""
    far.accept()
    await far.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n")
    await event.wait()


async def silent(far: FarEnd) -> None:
    await silent_until(far, far.near.was_reset)


async def test_a_target_that_never_answers_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "ANSWER_SECONDS", 0.05)

    async def mute(far: FarEnd) -> None:
        far.accept()
        await far.near.was_reset.wait()

    async with open_edge() as edge:
        edge.attach("edge1", mute)
        browser = await browse(edge)
        await browser.send_all(GET)
        assert (await receive_all(browser)).startswith(b"HTTP/1.1 504 red on edge1 did not begin to answer")


async def test_an_answer_that_is_no_http_is_502() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(b"SSH-2.0-OpenSSH\r\n\r\n"))
        browser = await browse(edge)
        await browser.send_all(GET)
        assert b"target_protocol" in await receive_all(browser)


@pytest.mark.parametrize(
    ("host", "status", "says"),
    [
        (b"red--edge9.localhost", b"404", b"no node edge9 is known here; nearest: edge1"),
        (b"ssh--edge1.localhost", b"404", b"qanat forward edge1 ssh"),
        (b"evil.example", b"404", b"not a host of this server"),
        (b"red--edge1.evil.example", b"404", b"not a host of this server"),
    ],
)
async def test_hosts_that_lead_nowhere(host: bytes, status: bytes, says: bytes) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo, Service("ssh", "tcp"))
        browser = await browse(edge)
        await browser.send_all(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        answer = await receive_all(browser)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert says in answer
        assert not session.streams


async def test_the_index_links_what_browsers_can_show() -> None:
    async with open_edge() as edge:
        edge.attach("edge.one", echo, Service("red", "http"), Service("ssh", "tcp"), Service("nvr", "https"))
        gone = edge.attach("edge2", echo)
        edge.nodes.detach(gone, Reason.SESSION_LOST)
        browser = await browse(edge)
        await browser.send_all(b"GET / HTTP/1.1\r\nHost: localhost:7003\r\n\r\n")
        page = (await receive_until(browser, b"</html>")).decode()
        alias = node_alias("edge.one")
        assert f'<a href="http://red--{alias}.localhost:7003/">red</a>' in page
        assert f"http://nvr--{alias}.localhost:7003/" in page
        assert "ssh--" not in page
        assert "edge2 <small>not attached" in page
        assert "wget --header='Host: NAME'" in page  # few programs resolve *.localhost
        await browser.send_all(b"GET /favicon.ico HTTP/1.1\r\nHost: localhost:7003\r\n\r\n")
        assert (await receive_all(browser)).startswith(b"HTTP/1.1 404 ")


async def test_a_user_sees_only_nodes_and_services_of_his_grants() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo, Service("red", "http"), Service("nvr", "https"), Service("ssh", "tcp"))
        edge.attach("edge2", echo, Service("red", "http"))
        gone = edge.attach("secret9", echo, Service("red", "http"))
        edge.nodes.detach(gone, Reason.SESSION_LOST)
        only = grant("everything", nodes=["edge1"], verbs=["http"], targets=["nvr"])
        edge.rules.apply(AccessChange(grants={"everything": only}))
        browser = await browse(edge)
        await browser.send_all(b"GET / HTTP/1.1\r\nHost: localhost:7003\r\n\r\n")
        page = (await receive_until(browser, b"</html>")).decode()
        assert "nvr--edge1.localhost" in page
        assert not re.search("red--|edge2|secret9", page)
        refusals = (
            (b"red--secret9", b"not granted"),
            (b"ssh--edge1", b"not granted"),
            (b"red--secret8", b"no node"),
        )
        for host, says in refusals:
            asked = await browse(edge)
            await asked.send_all(
                b"GET / HTTP/1.1\r\nHost: %b.localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
                % host
            )
            answer = (await receive_all(asked)).lower()
            assert says in answer or b"not_granted" in answer, answer
            for secret in (b"last seen", b"plain tcp", b"did you mean"):
                assert secret not in answer
        edge.rules.apply(AccessChange(grants={"everything": None}))
        await browser.send_all(b"GET / HTTP/1.1\r\nHost: localhost:7003\r\n\r\n")
        assert b"No grant lets you" in await receive_until(browser, b"</html>")


async def test_pipelined_requests_are_answered_in_turn() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", answer_with(OK))
        browser = await browse(edge)
        await browser.send_all(GET + GET)
        first = await receive_until(browser, b"hi")
        rest = b"" if first.count(b"HTTP/1.1 200 OK") == 2 else await receive_until(browser, b"hi")
        assert (first + rest).count(b"hi") == 2


async def test_smuggled_lengths_are_refused() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(OK))
        browser = await browse(edge)
        await browser.send_all(
            b"POST / HTTP/1.1\r\n"
            + HOST
            + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert (await receive_all(browser)).startswith(b"HTTP/1.1 400 ")
        assert not session.streams
