"""The server's ops listener: readiness, metrics, and access to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from certs.ca import Leaf
from tests.server.commands.test_init import run
from tests.support.fakes.edge import Edge, open_edge, receive_all
from tests.support.net.dialling import dial
from tests.support.pki import authority as pki
from tunnel_core.config.loader import load
from tunnel_core.config.types import ListenAddress, Ops
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import Revocation, RevocationKind, RevocationList
from tunnel_server.config import ServerConfig
from tunnel_server.listeners.addresses import CannotListen
from tunnel_server.ops import Readiness, ServerOps
from tunnel_server.pki.reload import ServerCertificates


@dataclass
class StoreState:
    """What the ops listener asks of a store."""

    is_failing: bool = False
    audit_dropped: int = 0


@dataclass
class Site:
    """``ops`` over the parts of ``edge``. ``ahead`` sets the clock of the certificates."""

    ops: ServerOps
    edge: Edge
    readiness: Readiness
    revoked: RevocationList
    store: StoreState

    async def get(self, address: str, path: str) -> tuple[int, str]:
        host, _, port = address.rpartition(":")
        async with await dial(host, int(port)) as stream:
            request = f"GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
            await stream.send_all(request.encode())
            head, _, body = (await receive_all(stream)).decode().partition("\r\n\r\n")
        return int(head.split()[1]), body


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@asynccontextmanager
async def open_site(folder: Path, clock: Clock, ops: Ops) -> AsyncIterator[Site]:
    assert run("init", "--name", "tunnel.example.com", "--data-dir", folder / "data").exit_code == 0
    config = attrs.evolve(load(folder / "data" / "server.toml", ServerConfig), ops=ops)
    config = attrs.evolve(config, trust_domain=pki.TRUST_DOMAIN)
    certificates, revoked = ServerCertificates(config, "h2", clock), RevocationList()
    readiness, store = Readiness(certificates), StoreState()
    known: Any = store
    async with open_edge(revoked) as edge:
        server_ops = ServerOps(config, readiness, edge.nodes, edge.counters, known, edge.watch, certificates)
        yield Site(server_ops, edge, readiness, revoked, store)


LOOPBACK = Ops(listen=ListenAddress("127.0.0.1", 0))


async def test_a_ready_server_has_started_does_not_stop_and_has_a_certificate(tmp_path: Path) -> None:
    clock = Clock()
    async with open_site(tmp_path, clock, LOOPBACK) as site:
        [address] = await site.ops.open(site.edge.nursery)
        assert await site.get(address, "/readyz") == (503, "starting\n")
        site.readiness.note_started()
        assert await site.get(address, "/readyz") == (200, "ready\n")
        clock.ahead = timedelta(days=10_000)
        assert await site.get(address, "/readyz") == (503, "certificate_expired\n")
        site.readiness.note_stopping()
        assert await site.get(address, "/readyz") == (503, "server_stopping\n")


@pytest.mark.parametrize("trouble", [{"is_failing": True}, {"audit_dropped": 2}])
async def test_a_store_in_trouble_makes_a_server_degraded(tmp_path: Path, trouble: dict[str, int]) -> None:
    async with open_site(tmp_path, Clock(), LOOPBACK) as site:
        [address] = await site.ops.open(site.edge.nursery)
        site.readiness.note_started()
        for name, value in trouble.items():
            setattr(site.store, name, value)
        assert await site.get(address, "/readyz") == (200, "degraded\n")
        _, metrics = await site.get(address, "/metrics")
        assert f"\nqanat_audit_dropped_total {float(site.store.audit_dropped)}\n" in metrics


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    async with open_site(tmp_path, Clock(), LOOPBACK) as site:
        [address] = await site.ops.open(site.edge.nursery)
    taken = Ops(listen=ListenAddress("127.0.0.1", int(address.rpartition(":")[2])))
    listeners = await trio.open_tcp_listeners(taken.listen.port if taken.listen else 0, host="127.0.0.1")
    try:
        (tmp_path / "again").mkdir()
        async with open_site(tmp_path / "again", Clock(), taken) as site:
            with pytest.raises(CannotListen, match=r"cannot listen on 127.0.0.1:\d+, \[ops\] listen: "):
                await site.ops.open(site.edge.nursery)
    finally:
        for listener in listeners:
            await listener.aclose()


async def test_an_operator_is_a_user_whose_certificate_is_not_revoked(tmp_path: Path) -> None:
    kim, node = pki.user_leaf("kim"), pki.node_leaf("edge1")
    async with open_site(tmp_path, Clock(), attrs.evolve(LOOPBACK, tls=True)) as site:
        tls = site.ops._access().tls
        assert tls is not None and tls.context() is site.ops.certificates.https.current

        def check(leaf: Leaf) -> None:
            assert tls is not None
            tls.check_certificate(leaf.credential.certificate_pem)

        check(kim)
        with pytest.raises(Refused) as refused:
            check(node)
        assert refused.value.reason is Reason.WRONG_ROLE
        site.revoked.put(Revocation(1, RevocationKind.USER, "kim", 0, "uid-0", ""))
        with pytest.raises(Refused) as refused:
            check(kim)
        assert refused.value.reason is Reason.REVOKED
