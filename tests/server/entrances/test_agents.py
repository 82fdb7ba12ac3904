"""The agents' port against clients that are no agents, over real TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from certs.ca import Leaf
from tests.rogues import http2
from tests.support.fakes.grpc_site import Site, open_site
from tests.support.fakes.recording_port import RecordingPort, ping
from tests.support.pki import authority as pki
from tunnel_core.carrier.interface import Carrier
from tunnel_core.http2 import carrier as http2_carrier
from tunnel_core.reasons import Reason
from tunnel_server.config import ListenerLimits
from tunnel_server.entrances import agents
from tunnel_server.entrances.open_listeners import OpenListeners
from tunnel_server.listeners.admission import Admission

FLOODS = ["ping", "settings", "window_update", "big_continuation"]


class Rogue:
    """A plain HTTP/2 client with the certificate of ``leaf``."""

    def __init__(self, site: Site, folder: Path, leaf: Leaf) -> None:
        identity = folder / "rogue.pem"
        identity.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
        self._site = site
        self.context = http2.client_context(identity)

    async def dial(self, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        address = "127.0.0.1", self._site.port
        return await trio.to_thread.run_sync(http2.dial, address, self.context, session)


def _flood(connection: ssl.SSLSocket, kind: str) -> None:
    """Flood until the server ends the connection."""
    connection.settimeout(10)
    flood = http2.FLOODS[kind]()
    for _ in range(100_000):
        connection.sendall(next(flood))


def _read_to_end(connection: ssl.SSLSocket) -> bytes:
    connection.settimeout(10)
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except OSError:
        pass
    return received


async def _until_refused(site: Site, count: int) -> None:
    with trio.fail_after(5):
        while len(site.refused) < count:  # noqa: ASYNC110 - the reporter is the listener's, not ours
            await trio.sleep(0.005)


async def _still_works(site: Site) -> None:
    agent, server = await site.connect()
    agent.send(ping(1))
    await server.wait_received(1)


async def _until_all_left(admission: Admission) -> None:
    with trio.fail_after(10):
        while admission.open_connections:  # noqa: ASYNC110 - no event announces a free place
            await trio.sleep(0.005)


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_is_cut_and_its_certificate_refused_for_a_while(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "PLACE_HELD_SECONDS", 0.0)
    async with open_site() as site:
        rogue = Rogue(site, tmp_path, pki.user_leaf("kim"))
        with await rogue.dial() as connection, pytest.raises(OSError):
            await trio.to_thread.run_sync(_flood, connection, kind)
        await _until_refused(site, 1)
        flood, *_ = site.refused
        assert flood.reason in {Reason.FRAME_FLOOD, Reason.PROTOCOL_ERROR}
        await _still_works(site)
        if flood.reason is Reason.FRAME_FLOOD:
            with contextlib.suppress(OSError), await rogue.dial() as connection:
                await trio.to_thread.run_sync(_read_to_end, connection)
            await _until_refused(site, 2)
            assert "accepts it again in" in site.refused[1].detail


async def test_the_time_of_refusal_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "PLACE_HELD_SECONDS", 0.0)
    monkeypatch.setattr(agents, "REFUSED_SECONDS", 0.0)
    async with open_site() as site:
        rogue = Rogue(site, tmp_path, pki.user_leaf("kim"))
        for count in (1, 2):
            with await rogue.dial() as connection, pytest.raises(OSError):
                await trio.to_thread.run_sync(_flood, connection, "ping")
            await _until_refused(site, count)
            assert "may come again" not in site.refused[-1].detail


async def test_a_connection_counts_as_unauthenticated_until_its_first_message(tmp_path: Path) -> None:
    admission = Admission(100, 2, 4, clock=trio.current_time)
    async with open_site(admission=admission) as site:
        rogue = Rogue(site, tmp_path, pki.user_leaf("kim"))
        silent = [await rogue.dial() for _ in range(2)]
        waiting = [await trio.open_tcp_stream("127.0.0.1", site.port) for _ in range(20)]
        await _until_refused(site, 1)
        assert site.refused[0].reason in {Reason.TOO_MANY_FROM_SOURCE, Reason.TOO_MANY_CONNECTIONS}
        assert admission.open_connections <= 2 + 2 * 4
        for stream in waiting:
            await stream.aclose()
        for connection in silent:
            connection.close()
        await _until_all_left(admission)
        await _still_works(site)


async def test_thousands_of_silent_connections_leave_room_and_descriptors() -> None:
    """The connections of one source are bounded, whatever it opens."""
    admission = Admission(10_000, 4, 16, clock=trio.current_time)
    async with open_site(admission=admission) as site:
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                silent = stack.enter_context(socket.socket())
                silent.setblocking(False)
                silent.connect_ex(("127.0.0.1", site.port))
            await _until_refused(site, 200 - 4 - 16)
            assert admission.open_connections <= 4 + 16
        await _until_all_left(admission)
        await _still_works(site)


async def test_unauthenticated_connections_leave_most_descriptors_to_others() -> None:
    async with trio.open_nursery() as nursery:
        reporter: Any = None  # nothing is refused
        listeners = OpenListeners(ListenerLimits(), reporter, nursery, max_agents=5000, descriptors=1024)
        admission = listeners._admission(agents.ENTRANCE)
        admitted = 0
        with pytest.raises(Exception, match="are not authenticated yet"):
            for number in range(1024):
                admission.admit(f"10.0.{number // 250}.{number % 250 + 1}")
                admitted += 1
        assert admitted == 1024 // 4


async def test_no_ticket_resumes_a_session_without_the_key(tmp_path: Path) -> None:
    async with open_site() as site:
        rogue = Rogue(site, tmp_path, pki.node_leaf("edge-1"))
        with await rogue.dial() as connection:
            await trio.to_thread.run_sync(connection.recv, 1)  # tickets come before the server's SETTINGS
            session = connection.session
            assert session is None or not session.has_ticket
        with await rogue.dial(session) as connection:
            await trio.to_thread.run_sync(connection.recv, 1)
            assert not connection.session_reused


async def test_a_connection_without_a_call_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_carrier, "_CALL_SECONDS", 0.1)
    async with open_site() as site:
        rogue = Rogue(site, tmp_path, pki.node_leaf("edge-1"))
        with await rogue.dial() as connection:
            await trio.to_thread.run_sync(_read_to_end, connection)
        await _still_works(site)


async def test_of_many_connections_of_one_certificate_the_oldest_is_closed(tmp_path: Path) -> None:
    async with open_site() as site:
        rogue = Rogue(site, tmp_path, pki.node_leaf("edge-2"))
        connections = [await rogue.dial() for _ in range(agents.MAX_CONNECTIONS_PER_CERTIFICATE + 1)]
        await trio.to_thread.run_sync(_read_to_end, connections[0])
        for connection in connections[1:]:
            connection.sendall(http2.frame(http2.PING, 0, 0, struct.pack(">Q", 1)))
            answer = await trio.to_thread.run_sync(_read_ping, connection)
            assert answer
            connection.close()
        connections[0].close()


def _read_ping(connection: ssl.SSLSocket) -> bool:
    """Return whether a PING is answered before the connection ends."""
    connection.settimeout(10)
    received = b""
    expected = http2.frame(http2.PING, http2.ACK, 0, struct.pack(">Q", 1))
    while expected not in received and (piece := connection.recv(4096)):
        received += piece
    return expected in received


class _SlowPort(RecordingPort):
    """Port that notes in which of ``passes`` each packet arrives, after a millisecond of work."""

    def __init__(self, carrier: Carrier, passes: list[None]) -> None:
        self.came: list[int] = []
        self._passes = passes
        super().__init__(carrier)

    def packet_received(self, data: bytes) -> None:
        ends = time.perf_counter() + 0.001
        while time.perf_counter() < ends:
            pass
        self.came.append(len(self._passes))
        super().packet_received(data)


async def test_others_run_while_one_connection_sends_many_packets_at_once(tmp_path: Path) -> None:
    passes: list[None] = []

    async def count_passes() -> None:
        while True:
            passes.append(None)
            await trio.lowlevel.checkpoint()

    packet = ping(1)
    content = (b"\0" + len(packet).to_bytes(4, "big") + packet) * 100
    call = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers())
    async with open_site() as site, trio.open_nursery() as nursery:
        nursery.start_soon(count_passes)
        rogue = Rogue(site, tmp_path, pki.node_leaf("edge-1"))
        with await rogue.dial() as connection:
            connection.sendall(call + http2.frame(http2.DATA, 0, 1, content))
            port = _SlowPort(await site.accept(), passes)
            await port.wait_received(100)
            connection.sendall(http2.frame(http2.DATA, http2.END_STREAM, 1, content))
            await port.wait_lost()
        nursery.cancel_scope.cancel()
    assert len(port.came) == 200, "all that came before the end are delivered"
    assert max(map(port.came.count, port.came)) <= 10


async def test_a_port_without_a_packet_is_asked_again_only_after_a_wake(tmp_path: Path) -> None:
    packet = ping(1)
    content = b"\0" + len(packet).to_bytes(4, "big") + packet
    call = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers())
    async with open_site() as site:
        with await Rogue(site, tmp_path, pki.node_leaf("edge-1")).dial() as connection:
            connection.sendall(call + http2.frame(http2.DATA, 0, 1, content))
            port = RecordingPort(await site.accept())
            await port.wait(lambda port: port.received and port.is_idle)
            asked = port.asked
            connection.sendall(http2.frame(http2.DATA, 0, 1, content))
            await port.wait_received(2)
            assert port.asked == asked
            port.send(packet)
            await port.wait(lambda port: port.asked == asked + 2)
            connection.sendall(http2.frame(http2.DATA, http2.END_STREAM, 1, content))
            await port.wait_lost()
    assert len(port.received) == 3


async def test_a_client_without_h2_is_refused(tmp_path: Path) -> None:
    async with open_site() as site:
        rogue = Rogue(site, tmp_path, pki.node_leaf("edge-1"))
        rogue.context.set_alpn_protocols(["http/1.1"])
        with pytest.raises(OSError):
            (await rogue.dial()).close()
            raise ConnectionError("accepted, and refused a moment later")
        await _until_refused(site, 1)
        assert site.refused[0].reason is Reason.HANDSHAKE_FAILED
