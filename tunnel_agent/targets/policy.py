"""Decide which targets this node allows, by the entries of ``allow`` and the services. No I/O.

1. An entry that names a target allows it. A network allows the addresses that it contains.
2. A name that no entry lists may still resolve into an allowed network. The agent resolves such a name only
   if some network allows the port, and decides on each address.
3. The addresses of a listed name are allowed, because the author of the entry trusts its DNS. Exceptions are
   link-local and cloud metadata addresses, and the unspecified address, which Linux dials as loopback. They
   need an entry inside their own network; ``0.0.0.0/0`` does not allow them.
4. An IPv6 address that carries an IPv4 address (mapped, NAT64) is also decided as the IPv4 address.
5. A refusal names the file and the line to add.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tunnel_core.names import LOOPBACK, Target, canonical_host, join_host_port, refuse_url
from tunnel_core.reasons import Reason, Refused

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK_ADDRESSES: tuple[Address, ...] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_REMEMBERED = 256
"""Size of the caches of parsed addresses, because parsing an address takes longer than connecting to it."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# CVE-2020-8562 and CVE-2022-3294 show the damage when users reach these networks unexpectedly.
_GUARDED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "::/128",
        "169.254.0.0/16",  # link-local; AWS, Azure, Google, OpenStack and others answer in it
        "fe80::/10",
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure's wire server
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "fd00:42::42/128",  # Scaleway
    )
)


@dataclass(frozen=True, slots=True)
class AllowEntry:
    """One line of ``allow``. Exactly one of host, network and unix_path is set."""

    host: str = ""
    network: Network | None = None
    unix_path: str = ""
    first_port: int = 0
    last_port: int = 0

    def __str__(self) -> str:
        """Return the entry as a line of ``allow``."""
        if self.unix_path:
            return f"unix:{self.unix_path}"
        ports = str(self.first_port)
        if self.last_port != self.first_port:
            ports += f"-{self.last_port}"
        return f"{self._place()}:{ports}"

    def _place(self) -> str:
        if self.network is None:
            return self.host
        single = self.network.prefixlen == self.network.max_prefixlen
        text = str(self.network.network_address if single else self.network)
        return f"[{text}]" if self.network.version == 6 else text

    def single_target(self) -> Target | None:
        """Return the only target that this entry allows; None if it allows several."""
        if self.unix_path:
            return Target(unix_path=self.unix_path)
        if self.first_port != self.last_port or (self.network and self.network.num_addresses > 1):
            return None
        host = str(self.network.network_address) if self.network else self.host
        return Target(host=host, port=self.first_port)

    def has_port(self, port: int) -> bool:
        """Whether this entry allows the port."""
        return self.first_port <= port <= self.last_port

    def has_address(self, address: Address, port: int) -> bool:
        """Whether this entry allows the address. A guarded address needs a network inside the guarded one."""
        if not self.has_port(port):
            return False
        if self.network is None:
            return self.host == LOOPBACK and carried(address) in LOOPBACK_ADDRESSES
        if address not in self.network and carried(address) not in self.network:
            return False
        guard = guarded_network(address)
        return guard is None or _is_within(self.network, guard)


@dataclass(frozen=True, slots=True)
class Published:
    """A service as the agent dials it. ``ca_file`` and ``verify`` apply to https only."""

    name: str
    target: Target
    protocol: str = "tcp"
    ca_file: str = ""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Destination:
    """A target that the policy may allow. ``Policy.pick`` decides on its addresses."""

    target: Target
    service: Published | None = None
    is_named: bool = False
    """Whether a service or an entry names the host itself, and so allows the addresses of its name."""

    @property
    def is_https(self) -> bool:
        return self.service is not None and self.service.protocol == "https"

    def __str__(self) -> str:
        if self.service is None:
            return str(self.target)
        return f"{self.target} (service {self.service.name})"


def parse_entry(text: str) -> AllowEntry:
    """Parse ``host:ports``, ``CIDR:ports``, ``[v6 or CIDR]:ports`` or ``unix:/path``.

    ``ports`` is a number or ``first-last``. Raises ``ValueError`` with a sentence for the user.
    """
    if text.startswith("unix:"):
        return AllowEntry(unix_path=Target.parse(text).unix_path)
    refuse_url(text)
    host, separator, ports = text.rpartition(":")
    if not separator:
        raise ValueError(f"{text[:300]!r} has no port: write host:port, CIDR:port, [v6]:port or unix:/path")
    first, last = _parse_ports(text, ports)
    network = _parse_network(text, host)
    name = "" if network else canonical_host(host)
    return AllowEntry(host=name, network=network, first_port=first, last_port=last)


def _parse_ports(text: str, ports: str) -> tuple[int, int]:
    first, dash, last = ports.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(number.isascii() and number.isdigit() and len(number) <= 5 for number in numbers):
        raise ValueError(f"{text[:300]!r} does not end in a port or a range such as 8000-8100")
    low, high = map(int, numbers)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text[:300]!r} has a port range that is not from 1 to 65535, rising")
    return low, high


def _parse_network(text: str, host: str) -> Network | None:
    """Return the network of ``host``, or None for a name. A single address is a network of one."""
    if host.startswith("[") and host.endswith("]"):
        return _network(text, host[1:-1], 6)
    if "/" in host or host.rpartition(".")[2].isdigit():
        return _network(text, host, 4)
    return None


def _network(text: str, spelling: str, version: int) -> Network:
    try:
        network = ipaddress.ip_network(spelling)
    except ValueError as error:
        raise ValueError(f"{text[:300]!r} is not an address or CIDR with a port: {error}") from None
    if network.version != version or "%" in spelling:
        raise ValueError(f"{text[:300]!r}: IPv6 stands in brackets, IPv4 without, e.g. [2001:db8::/32]:443")
    return network


@functools.lru_cache(_REMEMBERED)
def guarded_network(address: Address) -> Network | None:
    """Return the link-local, metadata or unspecified network that a dial of ``address`` reaches, if any."""
    return next((network for network in _GUARDED if carried(address) in network), None)


def _is_within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def carried(address: Address) -> Address:
    """Return the IPv4 address inside a mapped or NAT64 address; any other address unchanged."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


@functools.lru_cache(_REMEMBERED)
def _maybe_address(host: str) -> Address | None:
    try:
        return _address(host)
    except ValueError:
        return None


@functools.lru_cache(_REMEMBERED)
def _address(text: str) -> Address:
    return ipaddress.ip_address(text.partition("%")[0])  # getaddrinfo adds a zone to fe80::1


def addresses_without_resolver(host: str) -> list[str]:
    """Return the addresses of ``localhost`` or of an address itself; empty for other names."""
    if host == LOOPBACK:
        return [str(address) for address in LOOPBACK_ADDRESSES]
    return [host] if _maybe_address(host) is not None else []


@functools.lru_cache(_REMEMBERED)
def is_own_address(host: str) -> bool:
    """Whether ``host`` is certainly this machine: ``localhost`` or a loopback address."""
    address = _maybe_address(host)
    return host == LOOPBACK if address is None else address.is_loopback


class Policy:
    """Allowed targets of one node. Immutable; a reload makes a new ``Policy``.

    The agent itself serves the ``built_in`` services; a refusal lists them beside the others.
    """

    def __init__(
        self,
        *,
        node: str,
        file: str,
        allow: Iterable[AllowEntry],
        services: Iterable[Published] = (),
        built_in: Sequence[str] = (),
    ) -> None:
        self.node = node
        self.file = file
        self.services = {service.name: service for service in services}
        self._names = sorted({*self.services, *built_in})
        self.entries = (*allow, *(parse_entry(str(s.target)) for s in self.services.values()))
        """The entries of ``allow``, then one for each service, because publishing a target allows it."""
        self._find = functools.lru_cache(_REMEMBERED)(functools.partial(_find, self.entries))
        self._allows = functools.lru_cache(_REMEMBERED)(functools.partial(_allows, self.entries))

    def find(self, target: Target) -> Destination:
        """Return the destination of ``target``.

        Raises ``Refused`` for an unknown service, or for a target that no address could make allowed.
        """
        if target.service:
            return self._find_service(target.service)
        destination = self._find(target)
        if destination is None:
            raise self._refusal(Destination(target), _maybe_address(target.host))
        return destination

    def _find_service(self, name: str) -> Destination:
        service = self.services.get(name)
        if service is None:
            known = ", ".join(self._names) or "none"
            detail = f"node {self.node} publishes no service {name}; it publishes: {known}"
            raise Refused(Reason.UNKNOWN_SERVICE, detail)
        return Destination(service.target, service, is_named=True)

    def pick(self, destination: Destination, addresses: Sequence[str]) -> list[str]:
        """Return the resolved ``addresses`` that may be dialled, in their order, each once.

        Raises ``Refused`` if none may be dialled.
        """
        allowed = [text for text in dict.fromkeys(addresses) if self._allows(destination, text)]
        if addresses and not allowed:
            raise self._refusal(destination, _address(addresses[0]))
        return allowed

    def _refusal(self, destination: Destination, address: Address | None) -> Refused:
        line, why = str(destination.target), ""
        if address is not None and guarded_network(address) is not None:
            line = join_host_port(str(carried(address)), destination.target.port)
            why = f": {carried(address)} is a link-local, metadata or unspecified address"
        what = f"node {self.node} does not allow {destination.target}{why}"
        return Refused(Reason.TARGET_NOT_ALLOWED, f'{what}; add "{line}" to allow in {self.file}')


def _find(entries: Iterable[AllowEntry], target: Target) -> Destination | None:
    """Return the destination of a target that is no service; None if no address could make it allowed."""
    if target.unix_path:
        named = any(entry.unix_path == target.unix_path for entry in entries)
    else:
        named = any(e.host == target.host and e.has_port(target.port) for e in entries)
    return Destination(target, is_named=named) if named or _may_resolve_into(entries, target) else None


def _may_resolve_into(entries: Iterable[AllowEntry], target: Target) -> bool:
    address = _maybe_address(target.host)
    if address is not None:
        return any(entry.has_address(address, target.port) for entry in entries)
    if target.unix_path:
        return False
    if target.host == LOOPBACK:
        return any(e.has_address(a, target.port) for e in entries for a in LOOPBACK_ADDRESSES)
    return any(entry.network is not None and entry.has_port(target.port) for entry in entries)


def _allows(entries: Iterable[AllowEntry], destination: Destination, text: str) -> bool:
    address = _address(text)
    if destination.is_named and guarded_network(address) is None:
        return True
    return any(entry.has_address(address, destination.target.port) for entry in entries)
