"""Patterns of nodes and targets in grants. Values only, no I/O.

A ``*`` inside a name matches any characters except a dot, as in join tokens, and ``*`` alone matches all.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tunnel_core.names import (
    LOOPBACK,
    NODE_NAME_RULE,
    Target,
    canonical_host,
    is_host_name,
    is_node_name,
    is_service_name,
    refuse_url,
)
from tunnel_core.node_patterns import is_pattern

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

EVERYTHING = "*"
"""The pattern of all nodes, targets, verbs or users."""
MAX_SELECTOR_LABELS = 8
"""Labels in one selector; all of them must match."""
_LABEL_KEY = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_PORTS = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
_OWN_HOSTS = {LOOPBACK, "127.0.0.1", "::1"}
"""Hosts that are the node itself."""
_MAX_PORT = 65535


class GrantError(ValueError):
    """Raised for a grant that is not valid. The text is a sentence for the administrator."""


def parse_label(text: str) -> tuple[str, str]:
    """Parse ``key=value``. Raises ``GrantError``."""
    key, equals, value = text.partition("=")
    if not equals or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
        rule = "a lower-case key and a value of letters, digits and '.', '_', '-', as in site=hamburg"
        raise GrantError(f"{text[:200]!r} is not a label: {rule}")
    return key, value


@dataclass(frozen=True, slots=True)
class NodePattern:
    """A name, a name with ``*``, or a selector: ``labels`` that a node must have, all of them."""

    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    @functools.lru_cache(4096)
    def parse(cls, text: str) -> NodePattern:
        """Parse one item of ``nodes``. Raises ``GrantError``."""
        if text == EVERYTHING or is_node_name(text) or is_pattern(text):
            return cls(name=text)
        if "=" not in text:
            raise GrantError(
                f"{text[:200]!r} is not a node: {NODE_NAME_RULE}, with up to four *, or label=value"
            )
        pairs = [parse_label(part) for part in text.split(",")]
        if len(pairs) > MAX_SELECTOR_LABELS:
            raise GrantError(f"{text[:200]!r} has more than {MAX_SELECTOR_LABELS} labels")
        if len(dict(pairs)) != len(pairs):
            raise GrantError(f"{text[:200]!r} has a label twice; a node has one value for each")
        return cls(labels=tuple(sorted(pairs)))

    @property
    def is_exact(self) -> bool:
        """Whether the pattern is the name of one node."""
        return bool(self.name) and EVERYTHING not in self.name

    def matches(self, node: str, labels: Mapping[str, str]) -> bool:
        """Whether the node is meant. ``labels`` are those that were set on the server."""
        if self.labels:
            return all(labels.get(key) == value for key, value in self.labels)
        return self.name in (node, EVERYTHING) or (EVERYTHING in self.name and _glob(self.name, node))

    def __str__(self) -> str:
        return self.name or ",".join(f"{key}={value}" for key, value in self.labels)


class TargetKind(enum.Enum):
    """What a target pattern names."""

    ANY = enum.auto()
    SERVICE = enum.auto()
    OWN_PORT = enum.auto()
    HOST = enum.auto()
    NETWORK = enum.auto()
    UNIX = enum.auto()


@dataclass(frozen=True, slots=True)
class TargetPattern:
    """One item of ``targets``. ``text`` is a service or host (with ``*``), a network or a path.

    Services: ``ssh``, ``web-*``. Ports of the node itself: ``22``, ``8000-8100``. Other machines:
    ``plc.lan:502``, ``*.lan:80``, ``10.0.0.0/8:443``, ``[2001:db8::/32]:1-1024``, ``*:443``. Sockets:
    ``unix:/path``.
    """

    kind: TargetKind
    text: str = ""
    first_port: int = 0
    last_port: int = 0

    @classmethod
    @functools.lru_cache(4096)
    def parse(cls, text: str) -> TargetPattern:
        """Parse one item of ``targets``. Raises ``GrantError``."""
        if text == EVERYTHING:
            return cls(TargetKind.ANY)
        try:
            refuse_url(text)
            if text.startswith("unix:"):
                return cls(TargetKind.UNIX, Target.parse(text).unix_path)
            if ":" in text:
                return _host_pattern(text)
        except GrantError:
            raise
        except ValueError as error:
            raise GrantError(str(error)) from None
        if text.replace("-", "").isdecimal():
            return cls(TargetKind.OWN_PORT, "", *_ports(text, text))
        if not is_service_name(text.replace(EVERYTHING, "x")) or not 0 <= text.count(EVERYTHING) <= 4:
            forms = "a service, a port, host:port or unix:/path"
            raise GrantError(f"{text[:200]!r} is not a target: write {forms}")
        return cls(TargetKind.SERVICE, text)

    @property
    def may_be_service(self) -> bool:
        """Whether a service can match."""
        return self.kind in (TargetKind.ANY, TargetKind.SERVICE)

    def matches(self, target: Target) -> bool:
        """Whether the target is meant."""
        match self.kind:
            case TargetKind.ANY:
                return True
            case TargetKind.SERVICE:
                return bool(target.service) and _is_like(self.text, target.service)
            case TargetKind.UNIX:
                return bool(target.unix_path) and target.unix_path == self.text
        if not self.first_port <= target.port <= self.last_port:
            return False  # also a service or a socket, whose port is 0
        if self.kind is TargetKind.OWN_PORT:
            return target.host in _OWN_HOSTS
        if self.kind is TargetKind.HOST:
            return _is_like(self.text, target.host)
        address = _address(target.host)
        return address is not None and address in _network(self.text)

    def __str__(self) -> str:
        match self.kind:
            case TargetKind.ANY:
                return EVERYTHING
            case TargetKind.SERVICE:
                return self.text
            case TargetKind.UNIX:
                return f"unix:{self.text}"
        ports = f"{self.first_port}"
        if self.last_port != self.first_port:
            ports += f"-{self.last_port}"
        if self.kind is TargetKind.OWN_PORT:
            return ports
        return f"{f'[{self.text}]' if ':' in self.text else self.text}:{ports}"


def _host_pattern(text: str) -> TargetPattern:
    """Parse ``host:ports``. The host is a name, a name with ``*``, an address or a network."""
    host, _, port_text = text.rpartition(":")
    first, last = (1, _MAX_PORT) if port_text == EVERYTHING else _ports(text, port_text)
    if host.startswith("[") and host.endswith("]"):
        return _at_address(text, host[1:-1], 6, first, last)
    if "/" in host:
        return _at_address(text, host, 4, first, last)
    if EVERYTHING not in host:
        return _at(canonical_host(host), first, last)
    if host != EVERYTHING and (
        host.count(EVERYTHING) > 4 or not is_host_name(host.replace(EVERYTHING, "x")) or _ends_in_digits(host)
    ):
        raise GrantError(
            f"{text[:200]!r} is not a host with *: for addresses, write a network, 10.0.0.0/8:80"
        )
    return TargetPattern(TargetKind.HOST, host, first, last)


def _ends_in_digits(host: str) -> bool:
    """Whether the last label could be part of an IPv4 address."""
    return host.rpartition(".")[2].replace(EVERYTHING, "0").isdigit()


def _at_address(text: str, spelling: str, version: int, first: int, last: int) -> TargetPattern:
    """Return the pattern of an address, or of a network, which has a ``/``."""
    try:
        network = ipaddress.ip_network(spelling)
    except ValueError as error:
        raise GrantError(f"{text[:200]!r} is not an address or network with a port: {error}") from None
    if network.version != version or "%" in spelling:
        raise GrantError(f"{text[:200]!r}: IPv6 stands in brackets, IPv4 without, as in [2001:db8::/32]:443")
    if "/" in spelling:
        return TargetPattern(TargetKind.NETWORK, str(network), first, last)
    return _at(str(network.network_address), first, last)


def _at(host: str, first: int, last: int) -> TargetPattern:
    if host in _OWN_HOSTS:
        return TargetPattern(TargetKind.OWN_PORT, "", first, last)
    return TargetPattern(TargetKind.HOST, host, first, last)


def _ports(text: str, ports: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(ports)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= _MAX_PORT:
        raise GrantError(f"{text[:200]!r} has no port or rising range of ports from 1 to {_MAX_PORT}")
    return first, last


@functools.lru_cache(4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("[^.]*".join(map(re.escape, pattern.split(EVERYTHING))))


def _glob(pattern: str, name: str) -> bool:
    """Whether ``name`` matches. One star needs no regular expression, whose compiling takes 35 us."""
    head, _, tail = pattern.partition(EVERYTHING)
    if not name.startswith(head):
        return False
    if EVERYTHING in tail:
        return _compiled(pattern).fullmatch(name) is not None
    end = len(name) - len(tail)
    return end >= len(head) and name.endswith(tail) and "." not in name[len(head) : end]


def _is_like(pattern: str, name: str) -> bool:
    return pattern in (name, EVERYTHING) or (EVERYTHING in pattern and _glob(pattern, name))


@functools.lru_cache(1024)
def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@functools.lru_cache(4096)
def _network(text: str) -> Network:
    return ipaddress.ip_network(text)
