"""Properties of grpcio that Qanat depends on. If a test here fails, review the carrier for the new grpcio."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import trio

from tests.support.fakes.grpc_site import open_site, server_tls
from tests.support.fakes.recording_port import RecordingPort, bulk, ping
from tests.support.net import wire
from tests.support.pki import authority as pki
from tunnel_core.carrier.asyncio_bridge import Bridge, open_bridge
from tunnel_core.carrier.interface import CarrierFailed
from tunnel_core.limits import MIB
from tunnel_server.listeners.addresses import CannotListen

_Handler = Callable[[Any, Any], Awaitable[None]]


@asynccontextmanager
async def _bare_server(bridge: Bridge, handler: _Handler, **serializers: Any) -> AsyncIterator[str]:
    """The address of a server without TLS that has one method, /t/M."""

    async def start() -> tuple[Any, int]:
        server = grpc.aio.server()
        methods = {"M": grpc.stream_stream_rpc_method_handler(handler, **serializers)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = await bridge.run(start())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        with trio.CancelScope(shield=True):
            await bridge.run(server.stop(None))


async def _echo(_: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


def _refuse_to_serialize(message: bytes) -> bytes:
    raise LookupError("a codec's secret")


class TestCalls:
    async def test_a_cancelled_read_cancels_the_call(self) -> None:
        async def use(address: str) -> tuple[bool, grpc.StatusCode]:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.stream_stream("/t/M")()
                await call.write(b"1")
                assert await call.read() == b"1"
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(call.read(), 0.02)
                return call.done(), await call.code()

        async with open_bridge() as bridge, _bare_server(bridge, _echo) as address:
            assert await bridge.run(use(address)) == (True, grpc.StatusCode.CANCELLED)

    async def test_a_codec_that_raises_is_swallowed_by_the_client(self) -> None:
        async def use(address: str) -> Any:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.stream_stream("/t/M", response_deserializer=_refuse_to_serialize)()
                await call.write(b"1")
                return await call.read()

        async with open_bridge() as bridge, _bare_server(bridge, _echo) as address:
            assert await bridge.run(use(address)) is None

    async def test_a_codec_that_raises_on_the_server_sends_its_text_to_the_peer(self) -> None:
        async def use(address: str) -> str:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.stream_stream("/t/M")()
                await call.write(b"1")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                return str(caught.value.details())

        async with (
            open_bridge() as bridge,
            _bare_server(bridge, _echo, request_deserializer=_refuse_to_serialize) as address,
        ):
            assert "secret" in await bridge.run(use(address))

    async def test_every_end_of_a_call_reads_as_a_loss(self) -> None:
        async with open_site() as site:
            agent, server = await site.connect()
            server.carrier.abandon()  # status OK
            assert await agent.wait_lost()

    async def test_a_call_that_is_referenced_keeps_the_socket_of_a_closed_channel(self) -> None:
        """This is why only their owner task refers to channel and call."""

        async def open_and_close(address: str) -> Any:
            channel = grpc.aio.insecure_channel(address)
            call = channel.stream_stream("/t/M")()
            await call.write(b"1")
            await call.read()
            await channel.close()
            return call

        async with open_bridge() as bridge, _bare_server(bridge, _echo) as address:
            port = int(address.rpartition(":")[2])
            call = await bridge.run(open_and_close(address))
            await trio.sleep(0.2)
            kept = len(wire.connections(port))
            del call
            gc.collect()
            with trio.fail_after(2):
                while wire.connections(port):  # noqa: ASYNC110 - the kernel sends no event
                    await trio.sleep(0.01)
            assert kept == 2


class TestConnections:
    async def test_every_dial_is_a_connection_of_its_own(self) -> None:
        async with open_site() as site:
            for _ in range(3):
                await site.connect()
            assert len({end.local_port for end in wire.connections(site.port)} - {site.port}) == 3

    async def test_the_kernel_drops_a_dead_connection_after_twenty_seconds(self) -> None:
        async with open_site() as site:
            await site.connect()
            sockets = [
                (
                    own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                    own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                )
                for own in wire.connected_sockets(site.port)
            ]
            assert all(20_000 <= timeout < 30_000 and no_delay for timeout, no_delay in sockets)
            assert len(sockets) == len({timeout for timeout, _ in sockets}) == 2

    async def test_a_small_packet_costs_little_on_the_wire_and_brings_no_ping_of_http2(self) -> None:
        async with open_site() as site, wire.open_relay(site.address) as relay:
            agent, server = await site.connect(server=relay.address)
            for count in range(1, 11):  # settings, session tickets, window updates of the start
                agent.send(ping(count))
                await server.wait_received(count)
                server.send(ping(count))
                await agent.wait_received(count)
            before = relay.bytes_out + relay.bytes_in
            for count in range(11, 61):
                agent.send(ping(count))
                await server.wait_received(count)
                server.send(ping(count))
                await agent.wait_received(count)
            assert (relay.bytes_out + relay.bytes_in - before) / 50 < 200

    async def test_little_is_read_before_the_carrier_has_a_port(self) -> None:
        async with open_site() as site:
            agent = RecordingPort(await site.dial())
            server = await site.accept()
            packets = [bulk(MIB, number) for number in range(1, 41)]
            agent.send(*packets)
            with trio.fail_after(5):
                while agent.queued == 40:  # noqa: ASYNC110 - no event announces that gRPC took a packet
                    await trio.sleep(0.01)
            await trio.sleep(0.1)
            assert agent.queued > 20  # the buffers of TCP hold a few
            port = RecordingPort(server)
            await port.wait_received(40)
            assert port.sizes == [len(packet) for packet in packets]

    async def test_the_patience_to_connect_is_ours(self) -> None:
        with socket.socket() as full, socket.socket() as first, socket.socket() as second:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for filler in (first, second):  # what the backlog of 0 holds; SYNs after that are dropped
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with open_site() as site:
                begun = trio.current_time()
                with pytest.raises(CarrierFailed) as caught:
                    await site.dial(server=f"127.0.0.1:{full.getsockname()[1]}", connect_timeout_seconds=0.4)
                assert caught.value.detail
                assert 0.3 < trio.current_time() - begun < 1.5

    async def test_a_silent_connection_is_closed_when_the_handshake_is_due(self) -> None:
        async with open_site(handshake_seconds=0.3) as site:
            for sent in (b"", b"\x16\x03\x01"):
                stream = await trio.open_tcp_stream("127.0.0.1", site.port)
                await stream.send_all(sent)
                begun = trio.current_time()
                with trio.fail_after(5):
                    await _read_until_closed(stream)
                assert trio.current_time() - begun < 3

    async def test_garbage_affects_no_other_connection(self) -> None:
        async with open_site() as site:
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\x02\x00\x01" + bytes(511)):
                stream = await trio.open_tcp_stream("127.0.0.1", site.port)
                await stream.send_all(garbage)
                with trio.fail_after(5):
                    await _read_until_closed(stream)
            agent, server = await site.connect()
            agent.send(ping(1))
            await server.wait_received(1)

    async def test_two_servers_never_share_a_port(self) -> None:
        async with open_site() as site:
            with pytest.raises(CannotListen):
                async with open_site(listen=[site.address]):
                    raise AssertionError("both listen")


async def _read_until_closed(stream: trio.SocketStream) -> None:
    async with stream:
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


class TestProxies:
    async def test_the_environment_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        async with open_site() as site:
            await site.dial()

    @pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
    async def test_through_a_proxy_with_a_password(
        self, listen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1,::1,localhost")  # decided before, by who dials
        async with open_site(listen=[listen]) as site, wire.open_relay(is_proxy=True) as proxy:
            agent, server = await site.connect(proxy_url=f"http://me:p%40w%3A@{proxy.address}")
            agent.send(ping(1))
            await server.wait_received(1)
            (head,) = proxy.heads
            assert head.startswith(f"CONNECT {site.address} HTTP/1.1\r\n".encode())
            assert b"Basic bWU6cEB3Og==" in head  # me:p@w:

    async def test_a_proxy_that_is_not_there(self) -> None:
        async with open_site() as site:
            with pytest.raises(CarrierFailed, match="refused"):
                await site.dial(proxy_url="http://127.0.0.1:1")


class TestServerCertificates:
    async def test_credentials_change_without_a_restart_even_without_connections_in_between(self) -> None:
        other = pki.server_leaf("main", "other.internal")
        async with open_site() as site:
            site.reload(server_tls(other))
            site.reload(server_tls())
            await site.connect()
