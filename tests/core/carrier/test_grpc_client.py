from __future__ import annotations

import gc
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from certs.x509 import Usage, proven_leaf
from tests.support.fakes.grpc_site import Site, open_site, server_tls
from tests.support.fakes.recording_port import RecordingPort, bulk, ping
from tests.support.net import wire
from tests.support.pki import authority as pki
from tunnel_core.carrier.interface import CarrierFailed
from tunnel_core.identity import Role
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.reasons import Reason
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Malformed, Packet, Ping


async def _until(done: Callable[[], object], seconds: float = 20) -> None:
    """Poll a condition that no event reports: the state of the kernel's sockets."""
    with trio.fail_after(seconds):
        while not done():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_a_call_that_ends_in_the_middle_of_a_write_leaves_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An agent that leaves after the welcome, as a check does, ends the call during the server's write."""
    async with open_site() as site:
        for number in range(5):
            agent = await site.dial()
            server = RecordingPort(await site.accept())
            server.send(ping(number))
            agent.abandon()
            await server.wait(lambda port: port.lost)
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


class TestMoving:
    async def test_packets_move_both_ways_in_order(self) -> None:
        async with open_site() as site:
            agent, server = await site.connect()
            for port, other in ((agent, server), (server, agent)):
                port.send(*map(ping, range(500)))
                await other.wait_received(500)
                assert other.received == [Packet(0, 0, [Ping(token)]) for token in range(500)]
                assert other.sizes[7] == len(ping(7))

    async def test_large_packets_move_both_ways_at_once(self) -> None:
        packets = [bulk(MIB, number) for number in range(1, 25)]
        async with open_site() as site:
            agent, server = await site.connect()
            agent.send(*packets)
            server.send(*packets)
            for port in (agent, server):
                await port.wait_received(24)
                assert port.sizes == [len(packet) for packet in packets]

    async def test_a_port_with_nothing_to_send_is_asked_again_only_after_a_wake(self) -> None:
        async with open_site() as site:
            agent, server = await site.connect()
            agent.send(ping(1))
            await server.wait_received(1)
            await agent.wait(lambda port: port.is_idle)  # its write was acknowledged
            asked = agent.asked
            server.send(ping(2))
            await agent.wait_received(1)
            await trio.testing.wait_all_tasks_blocked()
            assert agent.asked == asked
            agent.carrier.wake()
            await trio.testing.wait_all_tasks_blocked()
            assert agent.asked == asked + 1

    async def test_an_answer_may_be_sent_from_inside_packet_received(self) -> None:
        class Echo(RecordingPort):
            def packet_received(self, data: bytes) -> None:
                super().packet_received(data)
                packet = decode_packet(data)
                assert isinstance(packet, Packet)
                self.send(encode_packet(0, 0, packet.frames))

        async with open_site() as site:
            agent = RecordingPort(await site.dial())
            Echo(await site.accept())
            for number in range(1, 100):
                agent.send(ping(number))
                await agent.wait_received(number)

    async def test_each_wake_gets_its_turn(self) -> None:
        async with open_site() as site:
            agent, server = await site.connect()
            for number in range(1, 20):
                agent.send(ping(number))
                await server.wait_received(number)

    async def test_bytes_that_are_no_packet_are_a_value(self) -> None:
        async with open_site() as site:
            agent, server = await site.connect()
            agent.send(b"\xff" * 20, ping(2))
            await server.wait_received(2)
            assert isinstance(server.received[0], Malformed)
            assert server.received[1] == Packet(0, 0, [Ping(2)])

    async def test_over_ipv6_alone(self) -> None:
        async with open_site(listen=["[::1]:0"]) as site:
            assert site.address.startswith("[::1]:")
            agent, server = await site.connect()
            agent.send(ping(1))
            await server.wait_received(1)
            assert server.carrier.peer.address.startswith("[::1]:")

    async def test_several_listeners(self) -> None:
        async with open_site(listen=["127.0.0.1:0", "[::]:0"]) as site:
            for address in site.addresses:
                port = address.rpartition(":")[2]
                (await site.dial(server=f"127.0.0.1:{port}")).abandon()
                assert (await site.accept()).peer.address.startswith("127.0.0.1:")

    async def test_the_server_gets_the_verified_leaf(self) -> None:
        async with open_site() as site:
            await site.dial(pki.node_leaf("edge-7"))
            peer = (await site.accept()).peer
            assert peer.tls_version == "TLSv1.3"
            identity = proven_leaf(
                peer.leaf_pem, usage=Usage.CLIENT, role=Role.NODE, trust_domain=pki.TRUST_DOMAIN
            ).identity
            assert identity.name == "edge-7"


class TestEnds:
    async def test_abandoned_by_either_side_is_lost_for_the_other_alone(self) -> None:
        async with open_site() as site:
            for first in (0, 1):
                ports = await site.connect()
                gone, left = ports[first], ports[1 - first]
                left.send(ping(1))
                await gone.wait_received(1)
                gone.carrier.abandon()
                gone.carrier.abandon()
                left.send(ping(2))
                assert await left.wait_lost()
                gone.carrier.wake()
                left.carrier.wake()
                left.carrier.abandon()
                await trio.testing.wait_all_tasks_blocked()
                assert not gone.lost
                assert len(gone.received) == 1
                assert len(left.lost) == 1

    async def test_abandoned_from_inside_packet_received(self) -> None:
        class Leaver(RecordingPort):
            def packet_received(self, data: bytes) -> None:
                super().packet_received(data)
                self.carrier.abandon()

        async with open_site() as site:
            agent = RecordingPort(await site.dial())
            server = Leaver(await site.accept())
            agent.send(*map(ping, range(10)))
            await agent.wait_lost()
            assert len(server.received) == 1
            assert not server.lost

    async def test_abandoned_before_the_start(self) -> None:
        async with open_site() as site:
            agent = await site.dial()
            server = RecordingPort(await site.accept())
            agent.abandon()
            await server.wait_lost()
            agent = await site.dial()
            (await site.accept()).abandon()
            await RecordingPort(agent).wait_lost()

    async def test_a_carrier_lost_before_its_start_is_reported_at_the_start(self) -> None:
        async with open_site() as site:
            agent = await site.dial()
            server = await site.accept()
            agent.abandon()
            await _until(lambda: not wire.connections(site.port))
            port = RecordingPort(server)
            await port.wait_lost()
            server.abandon()
            assert len(port.lost) == 1

    async def test_a_broken_connection_is_lost_for_both(self) -> None:
        """Nothing is on its way to the agent at the cut: gRPC misses a reset that arrives with data."""
        async with open_site() as site, wire.open_relay(site.address) as relay:
            agent, server = await site.connect(server=relay.address)
            agent.send(ping(1))
            await server.wait_received(1)
            server.send(ping(2))
            await agent.wait_received(1)
            relay.cut()
            assert await agent.wait_lost()
            assert await server.wait_lost()

    async def test_the_end_of_the_server_is_a_loss(self) -> None:
        async with open_site() as site:
            agent, server = await site.connect()
            await site.server.stop()
            assert server.lost
            assert await agent.wait_lost()

    async def test_a_message_above_the_limit_is_a_loss(self) -> None:
        async with open_site(limits=Limits(max_message_bytes=64 * KIB)) as site:
            agent, server = await site.connect()
            agent.send(bulk(65 * KIB))
            assert await server.wait_lost()
            assert not server.received
            agent.send(ping(1))  # gRPC misses a reset that arrives with data, until its next write
            await agent.wait_lost()

    async def test_stop_accepting_leaves_what_is_there(self) -> None:
        async with open_site() as site:
            agent, server = await site.connect()
            site.stop_accepting()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(CarrierFailed):
                await site.dial(connect_timeout_seconds=1)
            agent.send(ping(1))
            await server.wait_received(1)
            server.send(ping(2))
            await agent.wait_received(1)

    async def test_a_port_of_the_agent_that_raises_fails_the_bridge(self) -> None:
        with pytest.raises(LookupError, match="a fault of ours"):
            async with open_site() as site:
                _Broken(await site.dial())
                server = RecordingPort(await site.accept())
                server.send(ping(1))
                await trio.sleep(5)

    async def test_a_port_of_the_server_that_raises_loses_its_carrier_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_site() as site:
            agent = RecordingPort(await site.dial())
            _Broken(await site.accept())
            other_agent, other_server = await site.connect()
            agent.send(ping(1))
            await agent.wait_lost()
            other_agent.send(ping(1))
            await other_server.wait_received(1)
            assert "a fault of ours" in caplog.text


class _Broken(RecordingPort):
    def packet_received(self, data: bytes) -> None:
        raise LookupError("a fault of ours")


class TestRelease:
    async def test_twenty_forced_re_attaches_leave_one_socket_no_queue_no_descriptor(self) -> None:
        packets = [bulk(MIB, number) for number in range(1, 9)]
        async with open_site() as site:
            agent, server = await site.connect()
            agent.carrier.abandon()
            await server.wait_lost()
            await _until(lambda: not wire.connections(site.port))
            before = wire.descriptors()
            gc.collect()
            gc.disable()  # what only the collector would free is not released
            try:
                kept: list[Any] = []  # sessions and logs may keep the carrier and its last messages
                for _ in range(20):
                    old = agent, server
                    agent, server = await site.connect()
                    for port in (agent, server):
                        port.send(*packets)
                    old[0].carrier.abandon()
                    kept.append(old)
                for port in (agent, server):
                    await port.wait_received(len(packets))
                await _until(lambda: len(wire.connections(site.port)) == 2)
                await _until(lambda: not any(end.send_queue for end in wire.connections(site.port)))
                assert wire.descriptors() <= before + 2
            finally:
                gc.enable()

    async def test_abandoned_during_a_blocked_write(self) -> None:
        packets = [bulk(MIB, number) for number in range(1, 65)]
        async with open_site() as site:
            agent = RecordingPort(await site.dial())
            server = await site.accept()  # a carrier that is never started does not read
            agent.send(*packets)
            await _until(lambda: agent.queued < 64)  # and no more are taken
            agent.carrier.abandon()
            await _until(lambda: not wire.connections(site.port))
            await RecordingPort(server).wait_lost()

    async def test_everything_cancelled_at_once_during_blocked_writes(self) -> None:
        packets = [bulk(MIB, number) for number in range(1, 65)]

        async def send_to_the_deaf(site: Site) -> None:
            port = RecordingPort(await site.dial())
            port.send(*packets)
            await trio.sleep_forever()

        before = wire.descriptors()
        with trio.fail_after(10):
            with trio.CancelScope() as everything:
                async with open_site() as site, trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(send_to_the_deaf, site)
                    for _ in range(4):
                        RecordingPort(await site.accept()).send(*packets)
                    for _ in range(4):
                        await site.dial()
                        RecordingPort(await site.accept()).send(*packets)
                    everything.cancel()
            assert everything.cancelled_caught
            assert wire.descriptors() <= before

    async def test_failed_dials_leave_nothing_even_if_the_error_is_kept(self) -> None:
        kept = []
        async with open_site() as site:
            stranger = pki.node_leaf("edge-1", "other.internal")
            await site.connect()
            before = wire.descriptors()
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    for settings in ({"roots_pem": stranger.roots_pem}, {"server": "127.0.0.1:1"}):
                        with pytest.raises(CarrierFailed) as caught:
                            await site.dial(**settings)
                        kept.append(caught.value)
                await _until(lambda: len(wire.connections(site.port)) == 2)
                await _until(lambda: wire.descriptors() == before)
            finally:
                gc.enable()

    async def test_a_cancelled_dial_leaves_nothing(self) -> None:
        with socket.socket() as silent:  # accepts by backlog and never sends
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            port = silent.getsockname()[1]
            async with open_site() as site:
                before = wire.descriptors()
                with trio.move_on_after(0.1) as scope:
                    await site.dial(server=f"127.0.0.1:{port}")
                assert scope.cancelled_caught
                await _until(lambda: wire.descriptors() == before)


class TestDialling:
    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"server": "127.0.0.1:1"}, "Connection refused"),
            ({"server": "nosuch.invalid:7001"}, "nosuch.invalid"),
            (
                {"roots_pem": pki.authority("other.internal").issue(Role.NODE, "x").roots_pem},
                "issuer certificate",
            ),
            ({"roots_pem": b"no PEM"}, ""),
            ({"key_pem": b"no PEM"}, ""),
        ],
    )
    async def test_a_failure_has_its_cause(self, settings: dict[str, Any], says: str) -> None:
        async with open_site() as site:
            with pytest.raises(CarrierFailed) as caught:
                await site.dial(**settings)
            assert says in caught.value.detail
            assert caught.value.detail

    async def test_a_server_with_another_name_is_refused(self) -> None:
        elsewhere = pki.authority().issue(Role.SERVER, "elsewhere", names=("elsewhere.test",))
        async with open_site(tls=server_tls(elsewhere)) as site:
            with pytest.raises(CarrierFailed, match=r"(?i)host ?name|peer name"):
                await site.dial()

    @pytest.mark.parametrize("leaf", ["other authority", "expired"])
    async def test_a_certificate_that_the_server_does_not_trust_is_refused(self, leaf: str) -> None:
        stranger = pki.node_leaf("edge-1", "other.internal")
        bad = stranger if leaf == "other authority" else pki.expired_leaf(Role.NODE, "edge-1")
        async with open_site() as site:
            with pytest.raises(CarrierFailed):
                await site.dial(bad, roots_pem=pki.server_leaf().roots_pem)

    async def test_an_expired_server_is_refused(self) -> None:
        async with open_site(tls=server_tls(pki.expired_leaf(Role.SERVER, "main"))) as site:
            with pytest.raises(CarrierFailed, match="expired"):
                await site.dial()

    async def test_a_server_that_never_answers(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            async with open_site() as site:
                with trio.fail_after(3), pytest.raises(CarrierFailed) as caught:
                    await site.dial(
                        server=f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout_seconds=0.3
                    )
                assert caught.value.detail

    async def test_something_else_than_a_server(self) -> None:
        async def greet(stream: trio.SocketStream) -> None:
            await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")

        async with open_site() as site, trio.open_nursery() as nursery:
            (listener,) = await nursery.start(_serve_on_loopback, greet)
            with pytest.raises(CarrierFailed):
                await site.dial(server=f"127.0.0.1:{listener.socket.getsockname()[1]}")
            nursery.cancel_scope.cancel()


class TestServing:
    async def test_new_certificates_and_roots_without_a_restart(self) -> None:
        other_node = pki.node_leaf("edge-1", "other.internal")
        other_server = pki.server_leaf("main", "other.internal")
        async with open_site(listen=["127.0.0.1:0", "[::1]:0"]) as site:
            old = await site.connect()
            site.reload(server_tls(other_server))
            for address in site.addresses:
                (await site.dial(other_node, server=address)).abandon()
                with pytest.raises(CarrierFailed):
                    await site.dial(server=address)
            old[0].send(ping(1))
            await old[1].wait_received(1)

    async def test_too_many_carriers(self) -> None:
        async with open_site(max_carriers=1) as site:
            await site.connect()
            try:
                detail = await RecordingPort(await site.dial()).wait_lost()
            except CarrierFailed as failure:  # when the answer is quicker than the dial's last step
                detail = failure.detail
            assert "limit exceeded" in detail

    async def test_old_tls_is_refused_with_its_reason(self, tmp_path: Path) -> None:
        async with open_site() as site:
            with pytest.raises(trio.BrokenResourceError):
                await _call_over_tls_1_2(site, tmp_path)
            assert [refused.reason for refused in site.refused] == [Reason.TLS_TOO_OLD]
            agent, server = await site.connect()
            agent.send(ping(1))
            await server.wait_received(1)

    async def test_old_tls_is_accepted_if_configured(self, tmp_path: Path) -> None:
        async with open_site(min_tls_version="1.2") as site, trio.open_nursery() as nursery:
            nursery.start_soon(_call_over_tls_1_2, site, tmp_path)
            carrier = await site.accept()
            assert carrier.peer.tls_version == "TLSv1.2"
            carrier.abandon()

    async def test_a_client_without_certificate_is_refused(self) -> None:
        async with open_site() as site:
            stream = await _open_tls(site, _client_context())
            with trio.fail_after(5), pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
                while await stream.receive_some():
                    pass
                raise trio.BrokenResourceError("closed")
            await stream.transport_stream.aclose()


async def _serve_on_loopback(
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    task_status: trio.TaskStatus[list[trio.SocketListener]],
) -> None:
    await trio.serve_tcp(handler, 0, host="127.0.0.1", task_status=task_status)


def _client_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=pki.server_leaf().roots_pem.decode())
    context.set_alpn_protocols(["h2"])
    return context


async def _open_tls(site: Site, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    tcp = await trio.open_tcp_stream("127.0.0.1", site.port)
    return trio.SSLStream(tcp, context, server_hostname="127.0.0.1")


async def _call_over_tls_1_2(site: Site, folder: Path) -> None:
    """Makes the call by hand, as no gRPC client speaks TLS 1.2 to a server that knows 1.3; until EOF."""
    context = _client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    leaf = pki.node_leaf("edge-1")
    pem = folder / "node.pem"
    pem.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
    context.load_cert_chain(pem)
    stream = await _open_tls(site, context)
    headers = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value  # RFC 7541 6.2.2, no Huffman
        for name, value in [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", b"/qanat.v1.Tunnel/Attach"),
            (b":authority", b"127.0.0.1"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
    )
    try:
        await stream.send_all(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"") + _frame(1, 4, 1, headers)
        )
        with trio.fail_after(5):
            received = b""
            while b"grpc-status" not in received:
                data = await stream.receive_some()
                assert data, received
                received += data
    finally:
        await stream.transport_stream.aclose()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
