"""A cloud, an internet and edge networks behind NAT, each in a network namespace of its own.

    cloud 10.201.0.1 -- wan -- natI 10.201.I.1 | 192.168.1.1 -- edgeI 192.168.1.10

Every edge has the SAME address, as homes and plants have. An edge reaches the cloud through
MASQUERADE. A dial from the cloud to an edge is dropped silently. ``family=6`` builds the same from
IPv6 alone: no namespace has any IPv4 address, not even 127.0.0.1. Needs root, iproute2, iptables.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(Exception):  # noqa: N818 - named by what happened
    """A command that sets up the network failed; the text has the command and its output."""


@dataclass(frozen=True)
class Namespace:
    """A named network namespace, as ``ip netns`` makes it."""

    name: str

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    def argv(self, command: Sequence[str]) -> list[str]:
        """Return the argv that runs ``command`` inside. The process id is that of ``command`` itself."""
        return ["nsenter", f"--net={self.path}", *command]

    def run(self, *command: str, check: bool = True) -> str:
        return _run(*self.argv(command), check=check)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Put new sockets of this thread, and processes and threads that it starts, into the namespace."""
        with Path("/proc/thread-self/ns/net").open("rb") as before, self.path.open("rb") as inside:
            _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(before.fileno())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):  # os.setns exists from Python 3.12 on
        raise OSError(ctypes.get_errno(), "setns failed")


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603 - our own
    if check and done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


MakePair = Callable[[Namespace, str, Namespace, str], None]
"""Makes two joined interfaces, each with a name in a namespace."""


def veth_pair(a: Namespace, name_a: str, b: Namespace, name_b: str) -> None:
    _run(
        "ip", "link", "add", name_a, "netns", a.name, "type", "veth", "peer", "name", name_b, "netns", b.name
    )


@dataclass(frozen=True)
class _Plan:
    """The addresses of one IP family; ``{i}`` is the number of an edge."""

    cloud: str
    cloud_gateway: str
    wan: str
    wan_gateway: str
    lan_gateway: str
    edge: str
    prefix: int
    iptables: str
    forward: str


_PLANS = {
    4: _Plan(
        "10.201.0.1", "10.201.0.254", "10.201.{i}.1", "10.201.{i}.254", "192.168.1.1", "192.168.1.10", 24,
        "iptables", "net/ipv4/ip_forward",
    ),
    6: _Plan(
        "fd00:201::1", "fd00:201::fe", "fd00:201:{i}::1", "fd00:201:{i}::fe", "fd00:1::1", "fd00:1::10", 64,
        "ip6tables", "net/ipv6/conf/all/forwarding",
    ),
}  # fmt: skip


_numbers = itertools.count(1)


@dataclass
class Network:
    """The network that ``built()`` builds. Programs run in ``cloud`` and ``edge(1)`` ... ``edge(edges)``.

    ``uplink`` joins ``lan`` of a NAT with ``eth0`` of its edge. The namespaces' names begin with
    ``prefix``, which is unique by default.
    """

    edges: int = 2
    family: int = 4
    uplink: MakePair = veth_pair
    prefix: str = field(default_factory=lambda: f"q{os.getpid()}n{next(_numbers)}")
    _made: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def built(self) -> Iterator[Network]:
        """Build the network, and remove all of it at the end, also after a failure half-way."""
        try:
            self._build()
            yield self
        finally:
            for name in self._made:
                _run("ip", "netns", "del", name, check=False)

    @property
    def cloud(self) -> Namespace:
        return self._namespace("cloud")

    @property
    def cloud_address(self) -> str:
        return self._plan.cloud

    @property
    def loopback(self) -> str:
        return "127.0.0.1" if self.family == 4 else "::1"

    def edge(self, number: int) -> Namespace:
        return self._namespace(f"edge{number}")

    def nat(self, number: int) -> Namespace:
        return self._namespace(f"nat{number}")

    def nat_address(self, number: int) -> str:
        """Return the address under which the cloud sees edge ``number``."""
        return self._plan.wan.format(i=number)

    def cut(self, number: int) -> None:
        """Drop every packet between edge ``number`` and the cloud silently, until ``mend``."""
        for direction in ("-i", "-o"):
            self._filter("wan", "-I", "FORWARD", direction, f"edge{number}", "-j", "DROP")

    def mend(self, number: int) -> None:
        for direction in ("-i", "-o"):
            self._filter("wan", "-D", "FORWARD", direction, f"edge{number}", "-j", "DROP")

    def swallow(self, number: int, address: str) -> None:
        """Drop what edge ``number`` sends to ``address``, so that a dial to it gets no answer."""
        self._filter(f"edge{number}", "-I", "OUTPUT", "-d", address, "-j", "DROP")

    def forget_flows(self, number: int) -> None:
        """Flush the NAT's state, as a rebooted router does: running connections are dead.

        A NAT without the state would accept a connection from a packet in its middle, with another port.
        Common routers drop such packets, and so does this one.
        """
        rule = ("FORWARD", "-i", "lan", "-p", "tcp", "!", "--syn", "-m", "conntrack", "--ctstate", "NEW")
        if not self._filter_holds(f"nat{number}", *rule, "-j", "DROP"):
            self._filter(f"nat{number}", "-I", *rule, "-j", "DROP")
        self.nat(number).run("conntrack", "-F")

    @property
    def _plan(self) -> _Plan:
        return _PLANS[self.family]

    def _namespace(self, role: str) -> Namespace:
        return Namespace(f"{self.prefix}-{role}")

    def _build(self) -> None:
        plan = self._plan
        self._add("cloud")
        self._add("wan")
        self._join("cloud", "eth0", plan.cloud, "wan", "cloud", plan.cloud_gateway)
        self._route("cloud", "default", "via", plan.cloud_gateway)
        self._route("wan", "blackhole", "default")
        self._forward("wan")
        for number in range(1, self.edges + 1):
            self._build_edge(number, f"nat{number}", f"edge{number}")

    def _build_edge(self, number: int, nat: str, edge: str) -> None:
        plan = self._plan
        outer, gateway = plan.wan.format(i=number), plan.wan_gateway.format(i=number)
        self._add(nat)
        self._add(edge)
        self._join("wan", edge, gateway, nat, "wan", outer)
        self._join(nat, "lan", plan.lan_gateway, edge, "eth0", plan.edge, self.uplink)
        self._route(nat, "default", "via", gateway)
        self._route(edge, "default", "via", plan.lan_gateway)
        self._forward(nat)
        self._filter(nat, "-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
        self._filter(nat, "-P", "FORWARD", "DROP")
        self._filter(nat, "-A", "FORWARD", "-i", "lan", "-o", "wan", "-j", "ACCEPT")
        self._filter(nat, "-A", "FORWARD", "-i", "wan", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED",
                     "-j", "ACCEPT")  # fmt: skip

    def _add(self, role: str) -> None:
        namespace = self._namespace(role)
        _run("ip", "netns", "add", namespace.name)
        self._made.append(namespace.name)
        _run("ip", "-n", namespace.name, "link", "set", "lo", "up")
        if self.family == 6:
            _run("ip", "-n", namespace.name, "addr", "del", "127.0.0.1/8", "dev", "lo")
            # An address is usable at once, without a second of duplicate address detection.
            namespace.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")

    def _join(
        self,
        a: str, name_a: str, address_a: str,
        b: str, name_b: str, address_b: str,
        make_pair: MakePair = veth_pair,
    ) -> None:  # fmt: skip
        make_pair(self._namespace(a), name_a, self._namespace(b), name_b)
        for role, name, address in ((a, name_a, address_a), (b, name_b, address_b)):
            namespace = self._namespace(role).name
            _run("ip", "-n", namespace, "addr", "add", f"{address}/{self._plan.prefix}", "dev", name)
            _run("ip", "-n", namespace, "link", "set", name, "up")

    def _route(self, role: str, *route: str) -> None:
        _run("ip", f"-{self.family}", "-n", self._namespace(role).name, "route", "add", *route)

    def _forward(self, role: str) -> None:
        self._namespace(role).run("sh", "-c", f"echo 1 >/proc/sys/{self._plan.forward}")

    def _filter(self, role: str, *rule: str) -> None:
        self._namespace(role).run(self._plan.iptables, "-w", *rule)

    def _filter_holds(self, role: str, *rule: str) -> bool:
        argv = self._namespace(role).argv([self._plan.iptables, "-w", "-C", *rule])
        return subprocess.run(argv, capture_output=True, timeout=60).returncode == 0  # noqa: S603


def may_build() -> bool:
    """Whether this process can make network namespaces."""
    return os.geteuid() == 0
