"""Connections to targets that are kept for the next request."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.server.reverse_proxy.browsing import (
    ALICE,
    OK,
    FakeBrowser,
    asked,
    browse,
    keep_alive,
    kept,
    wanted,
)
from tests.support.fakes.edge import open_edge, receive_until
from tests.support.fakes.fake_session import Agent, FarEnd
from tunnel_core.reasons import Reason
from tunnel_server.access.opener import NotOpened, StreamRequest
from tunnel_server.reverse_proxy import pool as pool_module
from tunnel_server.reverse_proxy.pool import TargetPool

BOB = replace(ALICE, name="bob")


def post(body: bytes = b"x") -> FakeBrowser:
    return FakeBrowser(asked(("Content-Length", str(len(body))), method="POST"), [body])


async def test_one_stream_carries_one_request_after_the_other() -> None:
    seen: list[bytes] = []
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK, seen=seen))
        async with kept(edge) as pool:
            for _ in range(5):
                browser = await browse(pool)
                assert (browser.statuses, browser.body, browser.is_complete) == ([200], b"hi", True)
                assert browser.writes == 1, "head, body and end go in one write"
                assert len(pool) == 1
            assert len(session.streams) == 1
            assert edge.counters.closed_streams == {}
        assert len(seen) == 5
        assert not any(b"onnection" in request for request in seen)
        assert edge.counters.closed_streams == {("web", "done"): 1}
        assert len(pool) == 0


async def test_nothing_is_kept_unless_the_pool_runs() -> None:
    seen: list[bytes] = []
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK, seen=seen))
        pool = TargetPool(edge.opener)
        await browse(pool)
        await browse(pool)
        assert len(session.streams) == 2
        assert b"Connection: close\r\n" in seen[0]
        assert edge.counters.closed_streams == {("web", "done"): 2}


@pytest.mark.parametrize(
    "other",
    [
        wanted(BOB),
        wanted(source="192.0.2.2:5000"),
        wanted(service="blue"),
        wanted(node="edge2"),
        wanted(entrance="connect"),
    ],
    ids=["user", "source", "service", "node", "entrance"],
)
async def test_a_connection_belongs_to_one_user_and_one_service(other: StreamRequest) -> None:
    async with open_edge() as edge:
        sessions = [edge.attach(name, keep_alive(OK)) for name in ("edge1", "edge2")]
        async with kept(edge) as pool:
            await browse(pool)
            await browse(pool, request=other)
            await browse(pool, request=wanted(source="192.0.2.1:6000"))
            assert sum(len(session.streams) for session in sessions) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi",
        OK + b"HTTP/1.1 200 OK\r\n",
    ],
)
async def test_a_connection_of_doubtful_end_is_not_used_again(answer: bytes) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(answer))
        async with kept(edge) as pool:
            for _ in range(2):
                assert (await browse(pool)).body == b"hi"
            assert len(pool) == 0
            assert len(session.streams) == 2


async def test_a_request_that_asked_for_an_upgrade_ends_its_connection() -> None:
    """A target that switched without a 101 would read the next request as bytes of the other protocol."""
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK))
        async with kept(edge) as pool:
            asking = asked(("Connection", "Upgrade"), ("Upgrade", "tcp"))
            assert (await browse(pool, FakeBrowser(asking))).is_complete
            assert len(pool) == 0
            assert session.streams[0].was_closed


async def test_an_early_answer_ends_the_connection_whose_body_is_not_complete() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK))
        async with kept(edge) as pool:
            uploading = FakeBrowser(asked(("Content-Length", "9"), method="POST"), [b"abc", b""])
            assert (await browse(pool, uploading)).is_complete
            assert len(pool) == 0
            assert session.streams[0].was_closed


async def test_people_behind_one_proxy_share_no_connection() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK))
        async with kept(edge) as pool:
            for source, streams in (("192.0.2.1", 1), ("198.51.100.7", 2), ("192.0.2.1", 2)):
                await browse(pool, FakeBrowser(replace(asked(source=source), is_proxied=True)))
                assert len(session.streams) == streams


@pytest.mark.parametrize("is_proxied", [False, True])
async def test_a_connection_that_is_logged_in_behind_a_proxy_is_not_kept(is_proxied: bool) -> None:
    login = replace(asked(("Authorization", "NTLM x")), is_proxied=is_proxied)
    async with open_edge() as edge:
        edge.attach("edge1", keep_alive(OK))
        async with kept(edge) as pool:
            assert (await browse(pool, FakeBrowser(login))).is_complete
            assert len(pool) == (0 if is_proxied else 1)


async def hang_up_later(far: FarEnd) -> None:
    """Answer one request, and end the connection when the next one arrives."""
    far.accept()
    await receive_until(far.stream, b"\r\n\r\n")
    await far.stream.send_all(OK)
    await far.stream.receive_some()
    await far.stream.send_eof()


async def reset_later(far: FarEnd) -> None:
    far.accept()
    await receive_until(far.stream, b"\r\n\r\n")
    await far.stream.send_all(OK)
    await far.stream.receive_some()
    far.reset(Reason.TARGET_RESET, "")


@pytest.mark.parametrize("agent", [hang_up_later, reset_later])
async def test_a_get_that_meets_the_close_of_an_idle_connection_is_sent_again(agent: Agent) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", agent)
        async with kept(edge) as pool:
            await browse(pool)
            browser = await browse(pool)
            assert (browser.statuses, browser.body) == ([200], b"hi")
            assert len(session.streams) == 2


@pytest.mark.parametrize("agent", [hang_up_later, reset_later])
async def test_a_post_is_never_sent_twice(agent: Agent) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", agent)
        async with kept(edge) as pool:
            await browse(pool)
            with pytest.raises(NotOpened):
                await browse(pool, post())
            assert len(session.streams) == 1


async def test_a_get_whose_answer_began_is_never_sent_twice() -> None:
    async def half(far: FarEnd) -> None:
        far.accept()
        await receive_until(far.stream, b"\r\n\r\n")
        await far.stream.send_all(OK)
        await receive_until(far.stream, b"\r\n\r\n")
        await far.stream.send_all(b"H")
        await far.stream.send_eof()

    async with open_edge() as edge:
        session = edge.attach("edge1", half)
        async with kept(edge) as pool:
            await browse(pool)
            with pytest.raises(NotOpened) as caught:
                await browse(pool)
            assert caught.value.reason is Reason.TARGET_PROTOCOL
            assert len(session.streams) == 1


async def test_a_get_on_a_lost_session_is_not_sent_again() -> None:
    async def lose(far: FarEnd) -> None:
        far.accept()
        await receive_until(far.stream, b"\r\n\r\n")
        await far.stream.send_all(OK)
        await far.stream.receive_some()
        far.reset(Reason.SESSION_LOST, "the session with the agent was lost")

    async with open_edge() as edge:
        session = edge.attach("edge1", lose)
        async with kept(edge) as pool:
            await browse(pool)
            with pytest.raises(NotOpened, match="the session with the agent was lost"):
                await browse(pool)
            assert len(session.streams) == 1


async def test_a_post_uses_a_connection_that_became_idle_a_moment_ago(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK))
        async with kept(edge) as pool:
            await browse(pool)
            await trio.sleep(pool_module.YOUNG_SECONDS / 2)
            await browse(pool, post())
            assert len(session.streams) == 1
            await trio.sleep(pool_module.YOUNG_SECONDS + 0.1)
            await browse(pool)
            assert len(session.streams) == 1
            await trio.sleep(pool_module.YOUNG_SECONDS + 0.1)
            await browse(pool, post())
            assert len(session.streams) == 2
            assert len(pool) == 2


async def test_idle_connections_are_closed_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_edge(seconds=1000) as edge:
        session = edge.attach("edge1", keep_alive(OK))
        async with kept(edge) as pool:
            for _ in range(3):
                await browse(pool)
                await trio.sleep(pool_module.IDLE_SECONDS - 1)
                assert len(pool) == 1
            await trio.sleep(2)
            assert len(pool) == 0
            assert edge.counters.closed_streams == {("web", "done"): 1}
            await browse(pool)
            assert len(session.streams) == 2


async def at_once(pool: TargetPool, *requests: StreamRequest) -> None:
    """Send one GET for each of ``requests`` before the first answer is there."""
    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(browse, pool, None, request)


@pytest.mark.parametrize(
    ("bound", "requests", "left"),
    [
        ("MAX_IDLE_OF_SERVICE", [wanted()] * 4 + [wanted(service="blue")], 3),
        ("MAX_IDLE_OF_NODE", [wanted(), wanted(service="blue"), wanted(service="green"), wanted(BOB)], 3),
        ("MAX_IDLE", [wanted(), wanted(service="blue"), wanted(BOB), wanted(node="edge2")], 2),
    ],
)
async def test_idle_connections_are_bounded(
    bound: str, requests: list[StreamRequest], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, bound, 2)
    async with open_edge() as edge:
        sessions = [edge.attach(name, keep_alive(OK)) for name in ("edge1", "edge2")]
        async with kept(edge) as pool:
            await at_once(pool, *requests)
            assert sum(len(session.streams) for session in sessions) == len(requests)
            assert len(pool) == left
            assert edge.counters.closed_streams == {("web", "done"): len(requests) - left}


async def test_a_reset_ends_an_idle_connection_at_once_with_its_reason() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(OK))
        async with kept(edge) as pool:
            await browse(pool)
            session.streams[0].reset(Reason.REVOKED, "the certificate was revoked")
            assert len(pool) == 0, "no request uses it, even in the same moment"
            await trio.testing.wait_all_tasks_blocked()
            assert edge.counters.closed_streams == {("web", "revoked"): 1}
            await browse(pool)
            assert len(session.streams) == 2


async def test_a_session_that_drains_loses_its_idle_connections(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Server and agent wait for the end of all streams before they stop."""
    async with open_edge() as edge:
        sessions = [edge.attach(name, keep_alive(OK)) for name in ("edge1", "edge2")]
        async with kept(edge) as pool:
            await browse(pool)
            await browse(pool, request=wanted(node="edge2"))
            sessions[0].is_draining = True
            await trio.sleep(2 * pool_module.DRAIN_CHECK_SECONDS)
            assert sessions[0].streams[0].was_closed
            assert len(pool) == 1


@pytest.mark.parametrize("scheme", ["NTLM", "Negotiate"])
async def test_a_login_of_a_connection_serves_only_the_browser_that_logged_in(scheme: str) -> None:
    challenge = b"HTTP/1.1 401 No\r\nWWW-Authenticate: %b\r\nContent-Length: 0\r\n\r\n" % scheme.encode()
    async with open_edge() as edge:
        session = edge.attach("edge1", keep_alive(challenge, challenge, OK))
        async with kept(edge) as pool:
            first, second = object(), object()
            await browse(pool, FakeBrowser(connection=first))
            assert (await browse(pool, FakeBrowser(connection=second))).statuses == [401]
            assert len(session.streams) == 2
            login = asked(("Authorization", f"{scheme} x"), method="POST")
            await browse(pool, FakeBrowser(login, connection=first))
            assert (await browse(pool, FakeBrowser(connection=first))).statuses == [200]
            assert len(session.streams) == 2
            assert (await browse(pool, FakeBrowser(connection=object()))).statuses == [401]
            assert len(session.streams) == 3
