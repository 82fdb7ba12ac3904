"""The watcher of the route to the server, in a network whose routes really change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.testing

from tests.support.net.namespaces import Namespace, Network
from tests.support.processes import tools
from tunnel_agent.network.route_watcher import RouteWatcher

QUIET_SECONDS = 0.5
"""Above the time for which a burst is waited for."""


@pytest.fixture
def edge() -> Iterator[Namespace]:
    tools.require_root()
    tools.require("ip", "iptables", "nsenter")
    with Network(edges=1).built() as network:
        yield network.edge(1)


class Watch:
    """A watcher that runs inside ``edge``, with its reports."""

    def __init__(self, edge: Namespace) -> None:
        self.edge = edge
        self.told = 0
        self.watcher = RouteWatcher(self._count, least_seconds=0.0)

    def _count(self) -> None:
        self.told += 1

    async def after(self, *commands: str) -> int:
        """How many changes these ``ip`` commands caused."""
        before = self.told
        for command in commands:
            await trio.to_thread.run_sync(self.edge.run, "ip", *command.split())
        await trio.sleep(QUIET_SECONDS)
        return self.told - before


@pytest.fixture
async def watch(edge: Namespace) -> AsyncIterator[Watch]:
    made = Watch(edge)
    made.watcher.watch(["10.201.0.1"])
    async with trio.open_nursery() as nursery:
        with edge.entered():
            nursery.start_soon(made.watcher.run)
            await trio.testing.wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_the_source_and_the_gateway_change(watch: Watch) -> None:
    await watch.after("addr add 192.168.1.11/24 dev eth0")
    assert await watch.after("route replace default via 192.168.1.1 src 192.168.1.11") == 1
    assert await watch.after("route replace default via 192.168.1.2 src 192.168.1.11") == 1


async def test_another_interface_leads_to_the_server(watch: Watch) -> None:
    await watch.after("link add modem type veth peer name far", "addr add 10.64.0.7/24 dev modem")
    await watch.after("link set far up", "link set modem up")
    assert await watch.after("route add 10.201.0.0/24 via 10.64.0.1 dev modem") == 1
    assert await watch.after("link del modem") == 1  # back by the first


async def test_a_rule_alone_changes_the_way(watch: Watch) -> None:
    await watch.after("route add default via 192.168.1.9 table 77")
    assert await watch.after("rule add to 10.201.0.0/24 lookup 77") == 1


async def test_a_lost_route_is_reported_when_it_returns(watch: Watch) -> None:
    assert await watch.after("link set eth0 down") == 0
    assert await watch.after("link set eth0 up", "route add default via 192.168.1.1") == 1


async def test_a_hundred_pods_that_come_and_go_are_nothing(watch: Watch) -> None:
    pairs = range(100)
    made = [f"link add pod{i} type veth peer name far{i}" for i in pairs]
    named = [f"addr add 10.244.{i}.1/24 dev pod{i}" for i in pairs]
    raised = [f"link set pod{i} up" for i in pairs]
    assert await watch.after(*made, *named, *raised) == 0
    assert await watch.after(*(f"link del pod{i}" for i in pairs)) == 0
    assert await watch.after("route replace default via 192.168.1.2") == 1  # and it still receives messages
