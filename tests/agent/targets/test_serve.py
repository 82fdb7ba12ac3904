"""Streams served by the agent, over a real session in memory: dial, refuse, relay, leave, write down."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from tests.support.fakes.memory_link import LinkPair, memory_links
from tests.support.net.listening import echo, listening, tls_server
from tunnel_agent.network.happy_eyeballs import Connect, connect_address
from tunnel_agent.network.resolver import Resolve, resolve_host
from tunnel_agent.targets.dialer import Dialler
from tunnel_agent.targets.policy import Policy, Published, parse_entry
from tunnel_agent.targets.serve import Serving
from tunnel_agent.targets.tls import TargetTls
from tunnel_core.config.types import Log, StreamLog
from tunnel_core.http.server import HttpConnection
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream
from tunnel_core.telemetry.counters import Counters


class Rig:
    """A session, what serves it, and what was counted."""

    def __init__(self, pair: LinkPair, serving: Serving, counters: Counters) -> None:
        self.pair = pair
        self.serving = serving
        self.counters = counters

    def open(
        self,
        target: str,
        entrance: str = "connect",
        early_data: bytes = b"",
        *,
        target_tls: bool = False,
    ) -> TunnelStream:
        return self.pair.server.open(
            Target.parse(target),
            user="kim",
            entrance=entrance,
            early_data=early_data,
            target_tls=target_tls,
        )


async def _hello(connection: HttpConnection, request: h11.Request) -> None:
    await connection.respond(200, body=b"I am " + request.target)


@asynccontextmanager
async def serving(
    *allow: str,
    services: Sequence[Published] = (),
    connect: Connect = connect_address,
    resolve: Resolve = resolve_host,
    log: Log | None = None,
    served: list[TunnelStream] | None = None,
) -> AsyncIterator[Rig]:
    policy = Policy(
        node="edge1", file="agent.toml", allow=map(parse_entry, allow), services=services, built_in=["status"]
    )
    dialler = Dialler(policy, 10.0, TargetTls("edge1", "agent.toml"), resolve, connect)
    counters = Counters()
    async with trio.open_nursery() as nursery:
        serves = Serving(nursery, dialler, log or Log(), counters, {"status": _hello})
        async with memory_links() as pair:
            nursery.start_soon(take_all, pair, serves, served)
            yield Rig(pair, serves, counters)
        with trio.fail_after(5):
            await serves.wait_idle()
        assert serves.count == 0
        nursery.cancel_scope.cancel()


async def take_all(pair: LinkPair, serves: Serving, served: list[TunnelStream] | None = None) -> None:
    """What the link does for the agent: gives it each stream that the server opens."""
    async for stream in pair.opened:
        if served is not None:
            served.append(stream)
        serves.serve(stream)


async def read_all(stream: TunnelStream) -> bytes:
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


async def test_a_stream_reaches_its_target_and_half_closes() -> None:
    async with listening(echo) as address, serving(address) as rig:
        stream = rig.open(address, early_data=b"early ")
        await stream.wait_opened()
        assert stream.address == address
        await stream.send_all(b"late")
        await stream.send_eof()
        assert await read_all(stream) == b"early late bye"
        await stream.aclose()
        await rig.serving.wait_idle()
        assert rig.counters.closed_streams["connect", "done"] == 1
        assert rig.counters.bytes_moved["connect", "to_target"] == 10
        assert rig.counters.bytes_moved["connect", "to_user"] == 14


async def test_a_service_is_reached_by_name() -> None:
    async with listening(echo) as address:
        service = Published("echo", Target.parse(address))
        async with serving(services=[service]) as rig:
            stream = rig.open("echo")
            await stream.wait_opened()
            assert stream.address == address
            await stream.aclose()


@pytest.mark.parametrize(
    ("target", "reason"),
    [("10.0.0.5:22", Reason.TARGET_NOT_ALLOWED), ("nope", Reason.UNKNOWN_SERVICE)],
)
async def test_a_refusal_reaches_the_user_with_its_sentence(target: str, reason: Reason) -> None:
    async with serving() as rig:
        stream = rig.open(target)
        with pytest.raises(Refused) as caught:
            await stream.wait_opened()
        assert caught.value.reason is reason
        assert caught.value.detail.startswith("node edge1 ")
        await stream.aclose()
        assert rig.counters.refusals["connect", reason.word] == 1


async def test_refusals_under_made_up_names_make_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as rig:
        for number in range(100):
            stream = rig.open("10.0.0.5:22", entrance=f"made-up-{number}")
            with pytest.raises(Refused):
                await stream.wait_opened()
            await stream.aclose()
        assert rig.counters.refusals["other", "target_not_allowed"] == 100
    assert caplog.messages.count("stream refused") == 1


async def test_the_built_in_service_is_answered_without_a_dial() -> None:
    async with serving() as rig:
        stream = rig.open("status", entrance="web")
        await stream.send_all(b"GET /page HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await stream.wait_opened()
        assert stream.address == "agent:status"
        assert (await read_all(stream)).endswith(b"I am /page")
        await stream.aclose()


class SlowNetwork:
    """Dials that never come back, and whether they were cancelled."""

    def __init__(self) -> None:
        self.dialling = trio.Event()
        self.cancelled = trio.Event()

    async def connect(self, address: str, port: int) -> SocketStream:
        self.dialling.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()
        raise AssertionError


async def test_a_user_who_leaves_cancels_the_dial() -> None:
    network = SlowNetwork()
    async with serving("10.0.0.1:80", connect=network.connect) as rig:
        stream = rig.open("10.0.0.1:80")
        await network.dialling.wait()
        stream.reset(Reason.USER_LEFT)
        with trio.fail_after(5):
            await network.cancelled.wait()
            await rig.serving.wait_idle()
        assert rig.counters.refusals["connect", "user_left"] == 1
        assert not rig.pair.agent.streams


async def test_a_lost_session_cancels_the_dial() -> None:
    network = SlowNetwork()
    async with serving("10.0.0.1:80", connect=network.connect) as rig:
        rig.open("10.0.0.1:80")
        await network.dialling.wait()
        rig.pair.agent.end(Reason.PING_TIMEOUT)
        with trio.fail_after(5):
            await network.cancelled.wait()


async def test_a_connection_that_comes_as_the_user_leaves_is_closed() -> None:
    opened: list[SocketStream] = []
    streams: list[TunnelStream] = []

    async def connect(address: str, port: int) -> SocketStream:
        near, far = socket.socketpair()
        far.close()
        opened.append(SocketStream(near))
        streams[0].reset(Reason.USER_LEFT)  # what the link does when the peer's reset arrives
        return opened[0]

    async with serving("10.0.0.1:80", connect=connect, served=streams) as rig:
        stream = rig.open("10.0.0.1:80")
        with pytest.raises(Refused):
            await stream.wait_opened()
        await rig.serving.wait_idle()
        assert opened[0].socket.fileno() == -1


async def test_a_target_that_aborts_breaks_the_users_stream() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    async with listener, serving(address) as rig:
        stream = rig.open(address)
        accepted = await listener.accept()
        await stream.wait_opened()
        SocketStream.adopt(accepted).abort()
        with pytest.raises(StreamReset) as caught:
            await read_all(stream)
        assert caught.value.reason is Reason.TARGET_RESET
        await stream.aclose()


async def test_a_user_who_aborts_breaks_the_targets_connection() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    async with listener, serving(address) as rig:
        stream = rig.open(address)
        accepted = await listener.accept()
        await stream.wait_opened()
        stream.reset(Reason.USER_LEFT)
        with pytest.raises(trio.BrokenResourceError):
            await accepted.receive_some()
        await accepted.aclose()


async def test_stopping_resets_what_is_being_served() -> None:
    async with listening(echo) as address:
        policy = Policy(node="edge1", file="agent.toml", allow=[parse_entry(address)])
        dialler = Dialler(policy, 10.0, TargetTls("edge1", "agent.toml"))
        async with memory_links() as pair:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take_all, pair, Serving(nursery, dialler, Log(), Counters(), {}))
                stream = pair.server.open(Target.parse(address), user="kim", entrance="tcp")
                await stream.wait_opened()
                nursery.cancel_scope.cancel()
            with pytest.raises(StreamReset):
                await read_all(stream)
            await stream.aclose()


async def test_one_line_at_open_and_one_at_close_with_the_servers_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "qanat.streams")
    async with listening(echo) as address, serving(address) as rig:
        stream = rig.open(address)
        await stream.wait_opened()
        stream_id = stream.id
        await stream.aclose()
        await rig.serving.wait_idle()
    lines = [(record.getMessage(), record.fields) for record in caplog.records]  # type: ignore[attr-defined]
    assert [message for message, _ in lines] == ["stream opened", "stream closed"]
    assert {fields["stream"] for _, fields in lines} == {stream_id}
    assert lines[1][1]["reason"] in {"done", "user_left"}


async def test_lines_can_be_switched_off_per_entrance(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qanat.streams")
    async with serving(log=Log(streams=StreamLog.NONE)) as rig:
        with pytest.raises(Refused):
            await rig.open("nope").wait_opened()
    assert not caplog.records


# TLS to an https service.


@pytest.mark.parametrize(
    ("entrance", "target_tls"), [("web", True), ("console", True), ("web", False)], ids=str
)
async def test_the_agent_speaks_tls_where_the_server_asks_for_it(
    tmp_path: Path, entrance: str, target_tls: bool
) -> None:
    """Also to a server of version 0.1.0, which asks by the name of the entrance alone."""
    async with tls_server(tmp_path, then=_answer_in_tls) as address:
        nvr = Published("nvr", Target.parse(address), "https", verify=False)
        async with serving(services=[nvr]) as rig:
            stream = rig.open("nvr", entrance, target_tls=target_tls, early_data=b"GET")
            await stream.wait_opened()
            assert await stream.receive_some() == b"read GET inside TLS"
            await stream.aclose()


async def test_the_users_own_tls_passes_as_it_is() -> None:
    async with listening(echo) as address:
        nvr = Published("nvr", Target.parse(address), "https", verify=False)
        async with serving(services=[nvr]) as rig:
            stream = rig.open("nvr", "connect")
            await stream.send_all(b"\x16\x03\x01")
            await stream.send_eof()
            assert await read_all(stream) == b"\x16\x03\x01 bye"
            await stream.aclose()


async def test_a_plain_target_is_never_spoken_to_in_tls() -> None:
    async with listening(echo) as address:
        red = Published("red", Target.parse(address), "http")
        async with serving(services=[red]) as rig:
            stream = rig.open("red", "web", target_tls=True)
            await stream.send_all(b"GET")
            await stream.send_eof()
            assert await read_all(stream) == b"GET bye"
            await stream.aclose()


async def _answer_in_tls(stream: trio.SSLStream[trio.SocketStream]) -> None:
    await stream.send_all(b"read " + await stream.receive_some() + b" inside TLS")
