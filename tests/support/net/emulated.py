"""A cloud and one edge behind NAT whose uplink is a slow link, with the faults of such links.

    cloud -- wan -- nat1 | lan ~~ tun_link ~~ eth0 | edge1

``down`` is towards the edge, ``up`` towards the cloud. Needs what ``namespaces`` needs, and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.net.direction import Counters
from tests.support.net.namespaces import Namespace, Network

TOOLS = ("ip", "iptables", "conntrack", "nsenter", "ss")
"""The programs that an emulated link needs."""
_ROOT = Path(__file__).parents[3]
_END_SECONDS = 10


@dataclass(frozen=True)
class Terms:
    """The terms of one direction of a link. ``rate`` is in bytes per second; None is no limit."""

    rate: float | None = None
    delay_seconds: float = 0.0
    queue_seconds: float | None = None

    def as_table(self) -> dict[str, float]:
        return {key: value for key, value in vars(self).items() if value is not None}


class TunLink:
    """The program ``tun_link`` as a child process, which joins two namespaces.

    The child ends with its standard input, so it never outlives this process.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def join(self, a: Namespace, name_a: str, b: Namespace, name_b: str) -> None:
        """Make the pair of interfaces; ``down`` leads from ``a`` to ``b``."""
        assert self._child is None
        argv = [
            sys.executable,
            "-m",
            "tests.support.net.tun_link",
            f"{a.name}:{name_a}",
            f"{b.name}:{name_b}",
        ]
        self._child = subprocess.Popen(  # noqa: S603 - our own
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, start_new_session=True
        )
        self._answer()
        for namespace, name in ((a, name_a), (b, name_b)):
            # Packets in the kernel that the program has not read yet must not become a queue that drops.
            namespace.run("ip", "link", "set", name, "txqueuelen", "10000")

    def end(self) -> None:
        if self._child is None:
            return
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def command(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one command, and return its answer."""
        with self._turn:
            assert self._child is not None and self._child.stdin is not None
            self._child.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._child.stdin.flush()
            return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child is not None and self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"tun_link ended with code {self._child.wait(_END_SECONDS)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


class Surroundings:
    """The cloud, the NAT and the first edge of a network, with the faults that a test can cause."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._subnet = 1

    @property
    def cloud(self) -> Namespace:
        return self.network.cloud

    @property
    def edge(self) -> Namespace:
        return self.network.edge(1)

    @property
    def nat(self) -> Namespace:
        return self.network.nat(1)

    def flush_nat(self) -> None:
        """Make the NAT drop the state of every connection. It does not restore one from a later packet."""
        self.network.forget_flows(1)

    def change_address(self) -> None:
        """Give the edge another address in another network, and remove the old one at both ends."""
        old = self._subnet
        self.change_route()
        self._forget_address(old)

    def lose_address(self) -> None:
        """Remove the edge's address, until ``change_route`` gives it the next one."""
        self._forget_address(self._subnet)

    def _forget_address(self, subnet: int) -> None:
        for namespace, interface, host in ((self.edge, "eth0", 10), (self.nat, "lan", 1)):
            namespace.run("ip", "addr", "del", f"192.168.{subnet}.{host}/24", "dev", interface)

    def change_route(self) -> None:
        """Give the edge's default route another gateway and source. Users of the old address continue."""
        self._subnet += 1
        gateway, address = f"192.168.{self._subnet}.1", f"192.168.{self._subnet}.10"
        self.nat.run("ip", "addr", "add", f"{gateway}/24", "dev", "lan")
        self.edge.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        _route_by_default(self.edge, "via", gateway, "dev", "eth0", "src", address)

    def reset_connections(self) -> None:
        """Reset every TCP connection from the edge to the cloud, at both ends."""
        # The kernel closes the cloud's end and sends a reset to the other, as a middlebox does to both.
        # Listening sockets have no peer, so they stay.
        self.cloud.run("ss", "-K", "-tn", "dst", self.network.nat_address(1))

    def dials(self) -> int:
        """Return the number of SYNs that the edge has sent to the cloud so far."""
        shown = self.nat.run("iptables", "-w", "-t", "mangle", "-nvxL", "PREROUTING")
        return sum(int(line.split()[0]) for line in shown.splitlines()[2:])

    def connections(self, port: int) -> list[str]:
        """Return the edge's sockets to ``port`` of the cloud as ``ss`` shows them, closing ones included."""
        return _sockets(self.edge, "dport", port)

    def cloud_connections(self, port: int) -> list[str]:
        """Return the cloud's ends of these connections."""
        return _sockets(self.cloud, "sport", port)


class Emulated(Surroundings):
    """An emulated link in ``network``, in which sites are built. Made by ``emulated()``."""

    def __init__(self, network: Network, link: TunLink) -> None:
        super().__init__(network)
        self._link = link

    def set(
        self,
        *,
        rate: float | None = None,
        delay_seconds: float = 0.0,
        queue_seconds: float | None = None,
    ) -> None:
        """Set both directions alike; ``delay_seconds`` is one way. An omitted value means no limit."""
        self.set_ways(*(Terms(rate, delay_seconds, queue_seconds),) * 2)

    def set_ways(self, down: Terms, up: Terms) -> None:
        self._link.command("set", down=down.as_table(), up=up.as_table())

    def cut(self) -> None:
        """Lose every packet silently until ``restore``, packets on their way included."""
        self._link.command("cut")

    def restore(self) -> None:
        self._link.command("restore")

    def cut_for(self, seconds: float) -> float:
        """Cut the link for a time, and return at once with the ``time.monotonic()`` of its return."""
        return float(self._link.command("cut", seconds=seconds)["until"])

    def counters(self) -> dict[str, Counters]:
        """Return the counters of ``down`` and ``up`` since the start. Bytes are those of IP packets."""
        return {name: Counters(**values) for name, values in self._link.command("counters").items()}

    def carried(self) -> int:
        """Return the bytes of IP packets so far, both directions together."""
        return sum(counters.bytes for counters in self.counters().values())


def _sockets(namespace: Namespace, side: str, port: int) -> list[str]:
    # A socket in TIME-WAIT belongs to no process and holds nothing.
    states = ("state", "connected", "exclude", "time-wait")
    return namespace.run("ss", "-Htn", *states, side, "=", f":{port}").splitlines()


@contextlib.contextmanager
def emulated() -> Iterator[Emulated]:
    """Build the network without a limit of rate or delay, and remove it at the end."""
    with contextlib.ExitStack() as stack:
        link = TunLink()
        stack.callback(link.end)
        network = stack.enter_context(Network(edges=1, uplink=link.join).built())
        for namespace, interface in ((network.edge(1), "eth0"), (network.nat(1), "lan")):
            # Otherwise the kernel's own IPv6 traffic would be counted.
            _set_kernel(namespace, f"ipv6/conf/{interface}/disable_ipv6", "1")
        for namespace in (network.cloud, network.edge(1)):
            _route_by_default(namespace, *namespace.run("ip", "route", "show", "default").split()[1:])
            # Values that a connection learned from other settings of the link must not affect the next one.
            _set_kernel(namespace, "ipv4/tcp_no_metrics_save", "1")
        network.nat(1).run(
            "iptables", "-w", "-t", "mangle", "-A", "PREROUTING", "-i", "lan", "-p", "tcp", "--syn"
        )
        yield Emulated(network, link)


def _route_by_default(namespace: Namespace, *route: str) -> None:
    # Linux's own default, so that figures of two machines compare. A namespace can set it by route only.
    namespace.run("ip", "route", "replace", "default", *route, "congctl", "cubic")


def _set_kernel(namespace: Namespace, name: str, value: str) -> None:
    namespace.run("sh", "-c", f"echo {value} >/proc/sys/net/{name}")


def may_emulate() -> bool:
    """Whether this kernel has TUN interfaces."""
    return Path("/dev/net/tun").exists()
