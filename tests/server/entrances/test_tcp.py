"""A local port bound to one target of one node."""

from __future__ import annotations

import ipaddress

import pytest
import trio
import trio.testing

from tests.support.fakes.edge import Edge, echo, open_edge, receive_all, receive_until, refuse_with
from tests.support.fakes.fake_session import FarEnd
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_server.entrances.tcp import TcpEntrance, TcpForward, is_allowed, refuse_open_listen
from tunnel_server.listeners.addresses import CannotListen
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import listen_tcp

SSH = Target(host="localhost", port=22)
SSH_AT_EDGE1 = TcpForward("127.0.0.1:0", "edge1", SSH)


async def connect(edge: Edge, forward: TcpForward | None = None) -> trio.SocketStream:
    forward = forward or TcpForward("127.0.0.1:0", "edge1", SSH)
    return await edge.dial(await edge.listen("tcp", TcpEntrance(edge.opener, forward).serve))


async def test_bytes_go_both_ways_and_each_half_ends_alone() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        stream = await connect(edge)
        await stream.send_all(b"hello")
        await receive_until(stream, b"hello")
        await stream.send_eof()
        assert await receive_all(stream) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert (session.streams[0].target, session.streams[0].user) == ("localhost:22", "127.0.0.1")
        assert edge.counters.closed_streams == {("tcp", "done"): 1}
        assert edge.counters.bytes_moved == {("tcp", "to_target"): 5, ("tcp", "to_user"): 5}
        assert sum(edge.counters.first_bytes["tcp"].counts) == 1


async def test_a_listener_without_scopes_ends_its_connections_at_its_own_end() -> None:
    async def greet(far: FarEnd) -> None:
        far.accept()
        await far.stream.send_all(b"hello")
        await far.near.was_reset.wait()

    async with open_edge() as edge:
        edge.attach("edge1", greet)
        admission = Admission(1, 1, 1, clock=trio.current_time)
        listener = await listen_tcp("tcp", ["127.0.0.1:0"], admission, edge.records, gives_way=False)
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, TcpEntrance(edge.opener, SSH_AT_EDGE1).serve)
            stream = await edge.dial(listener)
            await receive_until(stream, b"hello")
            with pytest.raises((trio.BrokenResourceError, OSError)):
                await (await edge.dial(listener)).receive_some()
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert edge.counters.closed_streams == {("tcp", "server_stopping"): 1}
        assert admission.open_connections == 0


async def test_the_first_bytes_do_not_wait_for_the_dial() -> None:
    got = trio.Event()

    async def slow_dial(far: FarEnd) -> None:
        assert await receive_until(far.stream, b"GET") == b"GET"
        got.set()
        far.accept()
        await far.stream.send_all(b"OK")

    async with open_edge() as edge:
        edge.attach("edge1", slow_dial)
        stream = await connect(edge)
        await stream.send_all(b"GET")
        await got.wait()
        await receive_until(stream, b"OK")


async def test_a_refused_dial_resets_the_connection() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", refuse_with(Reason.DIAL_REFUSED, "nothing listens there"))
        stream = await connect(edge)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.refusals == {("tcp", "dial_refused"): 1}
        assert edge.counters.open_streams["tcp"] == 0


async def test_a_program_that_tries_again_and_again_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_edge() as edge:
        listener = await edge.listen("tcp", TcpEntrance(edge.opener, SSH_AT_EDGE1).serve)
        began = trio.current_time()
        for _ in range(20):
            stream = await edge.dial(listener)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        seconds = trio.current_time() - began
        assert edge.counters.refusals == {("tcp", "unknown_node"): 20}
    lines = [record for record in caplog.records if record.getMessage() == "stream refused"]
    assert 1 <= len(lines) <= 1 + seconds


@pytest.mark.parametrize("known", [True, False])
async def test_a_node_that_is_not_there_resets_the_connection(known: bool) -> None:
    async with open_edge() as edge:
        if known:
            edge.nodes.detach(edge.attach("edge1", echo), Reason.SESSION_LOST)
        stream = await connect(edge)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        reason = "node_not_attached" if known else "unknown_node"
        assert edge.counters.refusals == {("tcp", reason): 1}


async def test_a_source_that_is_not_listed_is_reset() -> None:
    networks = (ipaddress.ip_network("192.0.2.0/24"),)
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        stream = await connect(edge, TcpForward("127.0.0.1:0", "edge1", SSH, networks))
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert not session.streams
        assert edge.counters.unauthenticated_refusals == {("tcp", "source_not_allowed"): 1}


@pytest.mark.parametrize(
    ("address", "networks", "allowed"),
    [
        ("127.0.0.1", [], True),
        ("::1", [], True),
        ("192.0.2.9", [], False),
        ("192.0.2.9", ["192.0.2.0/24"], True),
        ("192.0.3.9", ["192.0.2.0/24"], False),
        ("2001:db8::9", ["192.0.2.0/24", "2001:db8::/32"], True),
        ("127.0.0.1", ["192.0.2.0/24"], False),
    ],
)
def test_sources_that_may_connect(address: str, networks: list[str], allowed: bool) -> None:
    listed = [ipaddress.ip_network(network) for network in networks]
    assert is_allowed(ipaddress.ip_address(address), listed) is allowed


def test_beyond_loopback_it_needs_a_list() -> None:
    refuse_open_listen(TcpForward("[::1]:2222", "edge1", SSH))
    refuse_open_listen(TcpForward("0.0.0.0:2222", "edge1", SSH, (ipaddress.ip_network("10.0.0.0/8"),)))
    with pytest.raises(CannotListen) as caught:
        refuse_open_listen(TcpForward("0.0.0.0:2222", "edge1", SSH))
    assert "allow_from" in str(caught.value)
