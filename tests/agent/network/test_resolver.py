"""Names of servers and proxies: Qanat resolves them, and gRPC dials those addresses."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import tunnel_agent
from tests.agent.diagnostics.test_check import answer_attaches
from tests.support.fakes.grpc_site import Site, open_site, server_tls
from tests.support.fakes.memory_link import welcome
from tests.support.net import wire
from tests.support.pki import authority as pki
from tests.support.pki.authority import authority
from tunnel_agent.attach.connector import Connector
from tunnel_agent.checks import CheckResult, Verdict, take_steps
from tunnel_agent.network import resolver
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.network.resolver import resolve_server
from tunnel_agent.network.server_path import ServerPath, agents_port
from tunnel_core.carrier.grpc_client import _target
from tunnel_core.carrier.interface import DialSettings
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.reasons import Refused

NAME = "tunnel_1.invalid"
"""No DNS knows this name, so a lookup with another resolver than the test's fails."""


class Hosts:
    """A resolver with the content of a hosts file."""

    def __init__(self, name: str = "", *addresses: str) -> None:
        self.addresses: dict[str, Sequence[str]] = {name: addresses}
        self.asked: list[str] = []

    async def resolve(self, host: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses[host]


async def silent(host: str) -> Sequence[str]:
    await trio.sleep_forever()
    raise AssertionError(host)


@asynccontextmanager
async def open_server(listen: str = "127.0.0.1:0") -> AsyncIterator[Site]:
    """Serve under the name ``NAME``, and welcome every agent."""
    leaf = authority().issue(Role.SERVER, "main", names=[NAME])
    async with open_site(listen=[listen], tls=server_tls(leaf)) as site, trio.open_nursery() as nursery:
        nursery.start_soon(answer_attaches, site._accepted.receive, lambda _: welcome(Limits()), [])
        yield site
        nursery.cancel_scope.cancel()


def connector_of(
    site: Site, resolve: resolver.Resolve, *, proxy: str = "", response_timeout_seconds: float = 5.0
) -> Connector:
    return Connector(
        bridge=site.bridge,
        bundle=pki.bundle_of(Role.NODE, "edge1"),
        proxy=ProxyChoice(proxy, environment={}),
        limits=Limits(),
        connect_timeout_seconds=response_timeout_seconds,
        services=(),
        on_open=lambda stream: None,
        on_state_change=lambda _: None,
        resolve=resolve,
    )


@pytest.mark.parametrize(
    ("listen", "addresses"),
    [
        ("127.0.0.1:0", ["127.0.0.1"]),
        ("127.0.0.1:0", ["127.0.0.2", "127.0.0.3", "127.0.0.1"]),
        ("127.0.0.1:0", ["::1", "127.0.0.1"]),
        ("127.0.0.1:0", ["fe80::1%lo", "127.0.0.1"]),
        ("[::1]:0", ["127.0.0.1", "::1"]),
        ("[::1]:0", ["::1"]),
    ],
)
async def test_grpc_dials_all_addresses_that_were_found(listen: str, addresses: list[str]) -> None:
    hosts = Hosts(NAME, *addresses)
    async with open_server(listen) as site:
        connector = connector_of(site, hosts.resolve)
        assert (await connector.probe(f"{NAME}:{site.port}")).software
        await connector.probe(f"{NAME}:{site.port}")
    assert hosts.asked == [NAME, NAME], "each attempt looks the name up anew"


async def test_the_name_is_still_what_tls_verifies() -> None:
    async with open_server() as site:
        connector = connector_of(site, Hosts("other.invalid", "127.0.0.1").resolve)
        with pytest.raises(Refused, match="Hostname Verification"):
            await connector.probe(f"other.invalid:{site.port}")


async def test_the_agent_resolves_the_proxys_name_and_the_proxy_the_servers() -> None:
    hosts = Hosts("proxy.invalid", "127.0.0.2", "127.0.0.1")
    async with open_server() as site, open_proxy(site) as proxy:
        connector = connector_of(site, hosts.resolve, proxy=f"http://me:pw@proxy.invalid:{proxy.port}")
        await connector.probe(f"{NAME}:{site.port}")
    assert hosts.asked == ["proxy.invalid"]
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {NAME}:{site.port} HTTP/1.1\r\n".encode())
    assert b"proxy-authorization: basic bwu6chc=" in head.lower()


class Proxy:
    """A proxy on 127.0.0.1 that resolves the server's name, which the machine behind it cannot."""

    def __init__(self, site: Site) -> None:
        self._relay = wire.Relay(site.address)
        self.port = 0
        self.heads: list[bytes] = []

    async def handle(self, near: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await near.receive_some()
        self.heads.append(head)
        await near.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        await self._relay.handle(near)


@asynccontextmanager
async def open_proxy(site: Site) -> AsyncIterator[Proxy]:
    proxy = Proxy(site)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.handle, [listener])
        yield proxy
        nursery.cancel_scope.cancel()


async def test_a_proxy_that_is_dead_at_each_address_is_the_first_failure() -> None:
    hosts = Hosts("proxy.invalid", "127.0.0.2", "127.0.0.3")
    async with open_server() as site:
        connector = connector_of(site, hosts.resolve, proxy="http://proxy.invalid:1")
        with pytest.raises(Refused, match=r"127\.0\.0\.2"):
            await connector.probe(f"{NAME}:{site.port}")


async def test_a_silent_resolver_takes_no_longer_than_the_attempt_may() -> None:
    async with open_server() as site:
        connector = connector_of(site, silent, response_timeout_seconds=0.1)
        with trio.fail_after(3), pytest.raises(Refused, match=f"resolving {NAME} took longer than 0.1 s"):
            await connector.probe(f"{NAME}:7001")


async def test_an_unknown_name_is_reported_as_unknown() -> None:
    async with open_server() as site:
        connector = connector_of(site, Hosts().resolve)
        with pytest.raises(Refused, match=f"{NAME} cannot be resolved: Name or service not known"):
            await connector.probe(f"{NAME}:7001")


async def test_a_link_watches_the_route_to_what_it_dialled() -> None:
    async with open_server() as site:
        connector = connector_of(site, Hosts(NAME, "127.0.0.2", "127.0.0.1").resolve)
        async with connector.open_session(f"{NAME}:{site.port}"):
            await trio.testing.wait_all_tasks_blocked()
            assert connector.route._change.addresses == ("127.0.0.2", "127.0.0.1")


async def test_check_and_join_ask_the_same_resolver() -> None:
    hosts = Hosts(NAME, "127.0.0.1")
    async with open_server() as site:
        port = agents_port(f"{NAME}:{site.port}")
        path = ServerPath(port, "edge1", ProxyChoice(environment={}), 5.0, None, hosts.resolve)
        findings: list[CheckResult] = []
        assert await take_steps(path.steps(), findings.append), findings


def test_nothing_else_of_the_agent_asks_a_resolver() -> None:
    """The agent looks up its own listeners by address or as ``localhost``."""
    sources = Path(tunnel_agent.__file__).parent.rglob("*.py")
    askers = [
        file.name for file in sources if re.search(r"[.]getaddrinfo[(]|open_tcp_stream", file.read_text())
    ]
    assert askers == ["resolver.py"]


async def test_a_silent_resolver_is_named_with_its_cure() -> None:
    path = ServerPath(agents_port(f"{NAME}:7001"), "edge1", ProxyChoice(environment={}), 0.1, None, silent)
    findings: list[CheckResult] = []
    await take_steps(path.steps(), findings.append)
    assert [(found.step, found.verdict) for found in findings] == [("dns", Verdict.FAIL)]
    assert "getent hosts" in findings[0].fix


# The system's resolver.


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "2001:db8::7"])
async def test_an_address_needs_no_thread(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_MAX_LOOKUPS", 0)
    assert await resolve_server(address) == [address]


async def test_a_name_of_the_hosts_file() -> None:
    assert {"127.0.0.1", "::1"} & set(await resolve_server("localhost"))
    with pytest.raises(OSError, match=r"Name or service not known|Temporary failure"):
        await resolve_server(NAME)


async def test_addresses_come_once_in_their_order_and_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [f"192.0.2.{number}" for number in range(1, 250)]
    monkeypatch.setattr(resolver, "_look_up", lookups_of([*many[:2], *many]))
    assert await resolve_server(NAME) == many[:8]


def lookups_of(found: list[str]) -> object:
    def look_up(host: str, flags: int) -> list[str]:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        return found

    return look_up


async def test_targets_that_hang_do_not_keep_a_server_from_being_found() -> None:
    """Lookups for users use trio's own threads; all of them hang here."""
    release = threading.Event()
    limiter = trio.to_thread.current_default_thread_limiter()

    async def hang() -> None:
        await trio.to_thread.run_sync(release.wait, abandon_on_cancel=True)

    async with trio.open_nursery() as nursery:
        for _ in range(int(limiter.total_tokens)):
            nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert await resolve_server("localhost")
        release.set()


async def test_lookups_that_hang_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    release, running = threading.Event(), 0

    def look_up(host: str, flags: int) -> list[str]:
        nonlocal running
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        running += 1
        release.wait()
        return ["192.0.2.1"]

    monkeypatch.setattr(resolver, "_look_up", look_up)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(cut_short)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert running <= 16
    release.set()


async def cut_short() -> None:
    with trio.move_on_after(0.3), contextlib.suppress(OSError):
        await resolve_server(NAME)


def test_one_target_holds_both_families() -> None:
    def target(*addresses: str, server: str = f"{NAME}:7001", proxy: str = "") -> str:
        settings = wire_settings(server, addresses, proxy)
        return _target(settings)

    assert target("192.0.2.1", "192.0.2.2") == "ipv4:192.0.2.1:7001,192.0.2.2:7001"
    assert target("2001:db8::1", "192.0.2.1") == "ipv6:[2001:db8::1]:7001,[::ffff:192.0.2.1]:7001"
    assert target("fe80::1%eth0") == "ipv6:[fe80::1%25eth0]:7001"
    assert target(server="192.0.2.9:1") == "ipv4:192.0.2.9:1"
    assert target(server="[::1]:1") == "ipv6:[::1]:1"
    assert target(proxy="http://192.0.2.3:3128") == f"dns:///{NAME}:7001"


def wire_settings(server: str, addresses: Sequence[str], proxy: str) -> DialSettings:
    return DialSettings(server, b"", b"", b"", proxy, addresses=addresses)
