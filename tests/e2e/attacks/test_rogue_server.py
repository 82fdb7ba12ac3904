"""A compromised server against a real agent, and packets that are costly to read, to both ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from certs.bundle import read_bundle
from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.edge import open_edge
from tests.e2e.attacks.ground import Ground
from tests.rogues.packets import HOSTILE, as_many
from tests.rogues.server import RogueServer, welcome
from tests.support.fakes.memory_link import hello
from tests.support.fakes.recording_port import RecordingPort
from tunnel_core.carrier.asyncio_bridge import open_bridge
from tunnel_core.carrier.grpc_client import dial_carrier
from tunnel_core.carrier.interface import DialSettings
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.names import join_host_port
from tunnel_core.reasons import Reason
from tunnel_core.wire.codec import encode_packet
from tunnel_core.wire.frames import Frame, Hello, Opened, RefusedFrame, Use

OPENS, AT_ONCE = 10_000, 200
COSTLY = ["hellos of empty services", "data in small pieces", "opens of all fields"]
MOST = 2**64 - 1
WRONG = [
    {"grace_ms": MOST},
    {"ping_interval_ms": 0},
    {"ping_interval_ms": MOST},
    {"missed_pings": MOST},
    {"initial_credit": MOST},
]


async def test_refused_opens_fill_neither_log_nor_memory(tmp_path: Path) -> None:
    async with open_edge(tmp_path) as edge:
        session = await edge.server.attached()
        session.open(edge.echo)
        await session.wait_frame(Opened)
        logged, resident = edge.process.log_size(), edge.process.resident_bytes
        session.hushed = (*session.hushed, RefusedFrame)
        for batch in range(OPENS // AT_ONCE):
            count = session.count + AT_ONCE
            names = (f"{batch}-{one}-" + "x" * 900 for one in range(AT_ONCE))
            session.send(*(session.next_open("10.9.9.9:1", entrance=name, user=name) for name in names))
            await session.wait(lambda count=count: session.count >= count)  # type: ignore[misc]
        assert not session.lost
        assert edge.process.log_size() - logged < 20 * KIB
        assert edge.process.resident_bytes - resident < 32 * MIB
        refused = 'qanat_refusals_total{entrance="other",reason="target_not_allowed"}'
        assert (await edge.metrics())[refused] == OPENS


async def test_no_welcome_with_a_wrong_number_is_used(tmp_path: Path) -> None:
    answers = [welcome(**wrong) for wrong in WRONG]

    def answer(_: Hello) -> Sequence[Frame]:
        return [answers.pop(0) if answers else welcome()]

    def prepare(server: RogueServer) -> None:
        server.answer = answer

    async with open_edge(tmp_path, prepare) as edge:
        session = await edge.server.attached()
        assert len(edge.server.sessions) == len(WRONG) + 1
        assert session is edge.server.sessions[-1]
        log = await edge.log_of(r"(?s).*attached to")
        assert log.count("reason=number_out_of_range") == len(WRONG)
        assert "correct [session] grace_seconds of the server" in log


async def test_costly_packets_end_the_session_at_the_agent_and_hold_nothing_up(tmp_path: Path) -> None:
    async with open_edge(tmp_path) as edge:
        session = await edge.server.attached()
        rest = max([await edge.answer_seconds() for _ in range(20)])
        longest = 0.0
        for name in COSTLY:
            session.send_bytes(as_many(HOSTILE[name]))
            while not session.received or not session.lost:
                longest = max(longest, await edge.answer_seconds())
            assert (await session.wait_bye()).reason is Reason.MALFORMED_PACKET
            session = await edge.server.attached()
        assert longest < max(20 * rest, 0.2)


async def test_costly_packets_to_the_server_delay_no_other_node(site: Ground, echo: Echo) -> None:
    bundle = read_bundle(site.node_bundle("rogue"))
    settings = DialSettings(
        join_host_port(site.address, site.agents_port), bundle.roots_pem, bundle.key_pem, bundle.chain_pem
    )
    with echo.measured() as under:
        async with open_bridge() as bridge:
            for name in COSTLY:
                port = RecordingPort(await dial_carrier(bridge, settings))
                port.send(encode_packet(0, 0, [hello(Limits())]))
                await port.wait_received(1)
                port.send(encode_packet(0, 0, [Use(1)]), as_many(HOSTILE[name]))
                await port.wait_lost()
    under.require(echo.rest)
    site.server.process.wait_log(r"node rogue detached.*malformed_packet")
