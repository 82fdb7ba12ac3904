"""CONNECT as kube-apiserver and others send it, over real sockets to fake sessions."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.fakes.edge import (
    TRUST_DOMAIN,
    Edge,
    echo,
    never,
    open_edge,
    receive_all,
    receive_until,
    refuse_with,
)
from tests.support.fakes.fake_session import FarEnd
from tunnel_client.dial import UnixDialer
from tunnel_client.tunnel import TunnelRequest, open_tunnel
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import RESET_ON_CLOSE
from tunnel_server.auth.access_rules import AccessChange
from tunnel_server.auth.users import User
from tunnel_server.listeners.addresses import UnixAddress
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import AcceptedConnection, Listener, listen_unix
from tunnel_server.store.audit import AuditKind

KUBE = b"CONNECT edge1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def a_user(accepted: AcceptedConnection) -> User:
    return User("kube-apiserver", Role.USER, TRUST_DOMAIN)


async def serve(edge: Edge, identify: object = a_user) -> Listener:
    https_entrance = edge.https_entrance(identify, edge.connect(), entrance="connect")
    return await edge.listen("connect", https_entrance.serve)


async def ask(edge: Edge, listener: Listener, request: bytes) -> bytes:
    async with await edge.dial(listener) as stream:
        await stream.send_all(request)
        return await receive_all(stream)


async def test_200_then_bytes_both_ways_with_half_close() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE)
        head = await receive_until(stream, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")
        await stream.send_all(b"hello")
        assert await receive_until(stream, b"hello") == b"hello"
        await stream.send_eof()
        assert await receive_all(stream) == b""
        await stream.aclose()
        opened = session.streams[0]
        assert not opened.target_tls  # the user's own TLS passes
        assert (opened.target, opened.user, opened.entrance) == (
            "localhost:10250",
            "kube-apiserver",
            "connect",
        )
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.closed_streams == {("connect", "done"): 1}
        assert edge.counters.open_streams["connect"] == 0


async def test_no_byte_follows_the_head_before_the_client_sends() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE)
        assert (await receive_until(stream, b"\r\n\r\n")).count(b"\r\n\r\n") == 1
        with trio.move_on_after(0.05) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught


async def test_bytes_sent_after_the_head_arrive_first() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE + b"first ")
        await receive_until(stream, b"\r\n\r\n")
        await stream.send_all(b"second")
        assert (await receive_until(stream, b"second")).endswith(b"first second")


async def test_a_target_that_sends_first_is_received() -> None:
    async def greet(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(b"SSH-2.0-x\r\n")

    async with open_edge() as edge:
        edge.attach("edge1", greet)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE)
        assert (await receive_until(stream, b"SSH-2.0-x\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_the_target_header_overrides_the_target() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(b"CONNECT edge1:1 HTTP/1.1\r\nHost: x\r\nQanat-Target: [fd00::5]:22\r\n\r\n")
        await receive_until(stream, b"\r\n\r\n")
        assert session.streams[0].target == "[fd00::5]:22"


async def test_the_target_header_is_utf_8(tmp_path: Path) -> None:
    def kim(_: AcceptedConnection) -> User:
        return User("kim", Role.USER, TRUST_DOMAIN)

    target = "unix:/run/b\u00fccher.sock"
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        path = tmp_path / "connect.sock"
        listener = listen_unix(
            "connect", UnixAddress(path), Admission(9, 9, clock=trio.current_time), edge.records
        )
        https_entrance = edge.https_entrance(kim, edge.connect(), entrance="connect")
        await edge.nursery.start(listener.serve, https_entrance.serve)
        async with open_tunnel(UnixDialer(path), TunnelRequest.parse("edge1", target)):
            assert session.streams[0].target == target


async def test_the_refusal_is_the_reason_phrase() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", refuse_with(Reason.DIAL_REFUSED, "nothing listens on port 10250 of edge1"))
        listener = await serve(edge)
        answer = await ask(edge, listener, KUBE)
        assert answer.startswith(b"HTTP/1.1 502 nothing listens on port 10250 of edge1\r\n")
        assert b"qanat-reason: dial_refused\r\n" in answer
        unknown = await ask(edge, listener, KUBE.replace(b"edge1", b"edge2"))
        assert unknown.startswith(b"HTTP/1.1 404 no node edge2 is known here; nearest: edge1\r\n")
        assert edge.counters.refusals == {("connect", "dial_refused"): 1, ("connect", "unknown_node"): 1}
        assert not edge.counters.unauthenticated_refusals


async def test_the_refusal_for_a_node_without_agent_has_the_time() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        edge.nodes.detach(session, Reason.SESSION_LOST)
        answer = await ask(edge, await serve(edge), KUBE)
        assert answer.startswith(b"HTTP/1.1 503 node edge1 has no agent attached; last seen 0 s ago")


async def test_an_agent_that_does_not_answer_costs_504() -> None:
    async def never_in_time(far: FarEnd) -> None:
        far.near.reset(Reason.OPEN_TIMEOUT, "node edge1 did not answer within 30 s")  # as the session does

    async with open_edge() as edge:
        edge.attach("edge1", never_in_time)
        answer = await ask(edge, await serve(edge), KUBE)
        assert answer.startswith(b"HTTP/1.1 504 node edge1 did not answer within 30 s")


async def test_a_user_who_breaks_the_connection_cancels_the_dial() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", never)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE + b"tls hello")
        await session.was_opened.wait()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        await stream.aclose()
        await session.streams[0].was_reset.wait()
        assert session.streams[0].ended_by is Reason.USER_LEFT


async def test_a_user_whose_input_ends_during_the_dial_gets_the_answer() -> None:
    dial_succeeds = trio.Event()

    async def answer_late(far: FarEnd) -> None:
        await dial_succeeds.wait()
        far.accept()
        output = await receive_all(far.stream)
        await far.stream.send_all(b"you sent " + output)
        await far.stream.send_eof()

    async with open_edge() as edge:
        session = edge.attach("edge1", answer_late)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE + b"hello")
        await stream.send_eof()
        await session.was_opened.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        dial_succeeds.set()
        answer = await receive_all(stream)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\nyou sent hello")
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.closed_streams == {("connect", "done"): 1}


async def test_a_stream_that_breaks_aborts_the_user() -> None:
    async def break_off(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(b"half an ans")
        await far.stream.receive_some()
        far.reset(Reason.TARGET_RESET, "")

    async with open_edge() as edge:
        edge.attach("edge1", break_off)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE)
        await receive_until(stream, b"half an ans")
        await stream.send_all(b"more?")
        try:
            rest = await receive_all(stream)
        except trio.BrokenResourceError:
            rest = b"reset"
        assert rest == b"reset"
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.closed_streams == {("connect", "target_reset"): 1}


async def test_an_unknown_user_is_refused_on_the_first_request() -> None:
    def nobody(accepted: AcceptedConnection) -> User:
        raise Refused(Reason.UNAUTHENTICATED, "no client certificate was shown")

    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        answer = await ask(edge, await serve(edge, nobody), KUBE)
        assert answer.startswith(b"HTTP/1.1 401 no client certificate was shown\r\n")
        assert not session.streams


async def test_a_node_may_not_open_streams() -> None:
    def a_node(accepted: AcceptedConnection) -> User:
        return User("edge2", Role.NODE, TRUST_DOMAIN)

    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        answer = await ask(edge, await serve(edge, a_node), KUBE)
        assert answer.startswith(b"HTTP/1.1 403 the certificate is the node edge2's")
        assert not session.streams


async def test_other_requests_get_a_list_of_what_there_is() -> None:
    async with open_edge() as edge:
        listener = await serve(edge)
        answer = await ask(edge, listener, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 there is nothing at /; there is CONNECT NODE:PORT")
        bad = await ask(edge, listener, b"CONNECT edge1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert bad.startswith(b"HTTP/1.1 400 ")


async def quiet(far: FarEnd) -> None:
    far.accept()
    await far.near.was_reset.wait()


async def test_a_removed_grant_ends_the_live_stream_at_once_and_refuses_the_next() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", quiet)
        listener = await serve(edge)
        stream = await edge.dial(listener)
        await stream.send_all(KUBE)
        await receive_until(stream, b"\r\n\r\n")
        assert edge.opener.access.watched_count == 1
        edge.rules.apply(AccessChange(grants={"everything": None}))
        with pytest.raises(trio.BrokenResourceError):  # a reset, as for a revoked certificate
            await stream.receive_some(1)
        await trio.testing.wait_all_tasks_blocked()
        assert session.streams[0].ended_by is Reason.NOT_GRANTED
        assert edge.opener.access.watched_count == 0
        assert edge.counters.closed_streams == {("connect", "not_granted"): 1}
        assert [line.kind for line in edge.audit] == [AuditKind.ENDED]
        assert edge.audit[0].user == "kube-apiserver"
        answer = await ask(edge, listener, KUBE)
        assert answer.startswith(
            b"HTTP/1.1 403 user kube-apiserver may not connect to localhost:10250 of node edge1: "
        )
        assert [line.kind for line in edge.audit] == [AuditKind.ENDED, AuditKind.REFUSED]


async def test_a_name_is_suggested_only_to_a_user_who_may_read_the_node() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        listener = await serve(edge)
        request = b"CONNECT edge2:10250 HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b"nearest: edge1" in await ask(edge, listener, request)
        edge.rules.apply(AccessChange(grants={"everything": None}))
        answer = await ask(edge, listener, request)
        assert b" 404 " in answer and b"edge1" not in answer


async def test_a_stream_is_recorded_with_its_grant_and_bytes() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        stream = await edge.dial(await serve(edge))
        await stream.send_all(KUBE + b"hello")
        await receive_until(stream, b"hello")
        await stream.send_eof()
        assert await receive_all(stream) == b""
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        edge.attach("edge1", refuse_with(Reason.DIAL_REFUSED, "no"))
        await ask(edge, await serve(edge), KUBE)
        await trio.testing.wait_all_tasks_blocked()
        await edge.stream_audit.flush()
        done, refused = edge.streams
        assert done[3:8] == ("kube-apiserver", "edge1", "localhost:10250", "127.0.0.1:80", "connect")
        assert done[9:] == ("everything", "done", 5, 5)
        assert (refused.address, refused.reason, refused.grant) == ("", "dial_refused", "everything")
