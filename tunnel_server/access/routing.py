"""Routing of CONNECT authorities and web hosts to a node and a target. No I/O."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tunnel_core.names import LOOPBACK, Target, is_label, is_node_name, is_service_name, split_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_server.nodes.registry import unknown_node

TARGET_HEADER = b"qanat-target"
"""Request header that overrides the target of a CONNECT. The authority then names only the node."""
SEPARATOR = "--"
"""Separates service and node alias in a web host. Neither name can contain the separator."""


class Directory(Protocol):
    """Registry of nodes, as far as routing needs it."""

    def name_of(self, text: str) -> str | None:
        """Return the full name for a name or alias, None if unknown. Raises ``Refused(AMBIGUOUS_NAME)``."""

    def nearest(self, text: str) -> str | None:
        """Return the known name that is most similar to ``text``."""


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """Full name of a node, and the target that its agent dials."""

    node: str
    target: Target


def route_authority(authority: str, directory: Directory, target: str | None = None) -> NodeRoute:
    """Parse ``node:port`` or ``service.node:port``. The longest existing node name wins.

    With ``target`` (from ``Qanat-Target``) the host must name a node, and the port is ignored.
    Raises ``Refused`` with ``BAD_REQUEST``, ``UNKNOWN_NODE`` or ``AMBIGUOUS_NAME``.
    """
    host, port = _split(authority)
    node = directory.name_of(host)
    if node is not None:
        return NodeRoute(node, _target(target) if target is not None else Target(host=LOOPBACK, port=port))
    service, _, rest = host.partition(".")
    owner = directory.name_of(rest) if rest and target is None else None
    if owner is None:
        raise Refused(Reason.UNKNOWN_NODE, _unknown(host, rest, directory))
    if not is_service_name(service):
        raise Refused(Reason.BAD_REQUEST, f"{service} before node {owner} is not a service name")
    return NodeRoute(owner, Target(service=service))


@functools.lru_cache(1024)
def _split(authority: str) -> tuple[str, int]:
    try:
        host, port = _host_and_port(authority)
    except ValueError as error:
        raise Refused(Reason.BAD_REQUEST, f"the CONNECT authority is not node:port: {error}") from None
    _refuse_address(host)
    return host, port


def _host_and_port(authority: str) -> tuple[str, int]:
    host, _, port = authority.rpartition(":")
    if is_node_name(host) and host.rpartition(".")[2].isdigit() and not _is_address(host):
        # A node name may be "42" or "shop.7", which the parser of hosts takes for a broken IPv4 address.
        return host, split_host_port(f"{LOOPBACK}:{port}")[1]
    return split_host_port(authority)


def _refuse_address(host: str) -> None:
    # Two nodes behind two NATs may have the same address, so an address does not identify a node.
    if _is_address(host):
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"the address {host} names no node; use the node's name "
            "(kube-apiserver: --kubelet-preferred-address-types=Hostname)",
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        raise Refused(Reason.BAD_REQUEST, f"the Qanat-Target header is not a target: {error}") from None


def _unknown(host: str, rest: str, directory: Directory) -> str:
    nearest = directory.nearest(host)
    if nearest is None and rest:
        nearest = directory.nearest(rest)
    return unknown_node(host, nearest)


def target_header(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the ``Qanat-Target`` of a request, or None. Raises ``Refused`` if there are two or more.

    The value is unescaped UTF-8. Only the path of a unix socket may contain non-ASCII characters.
    """
    values = [value for name, value in headers if name.lower() == TARGET_HEADER]
    if len(values) > 1:
        raise Refused(Reason.BAD_REQUEST, "the request has more than one Qanat-Target header")
    try:
        return values[0].decode() if values else None
    except UnicodeDecodeError:
        raise Refused(Reason.BAD_REQUEST, "the Qanat-Target header is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class WebHost:
    """Service and node alias in a ``Host`` header of the web entrance; both are empty for the index."""

    service: str = ""
    alias: str = ""


def route_web_host(host: str, domain: str) -> WebHost:
    """Parse ``service--alias.<domain>`` or the bare domain, where ``localhost`` also counts as the domain.

    Raises ``Refused`` for any other host, because of DNS rebinding. A page under a foreign name that resolves
    to this server must not read what the server's users may read.
    """
    name = _host_name(host)
    if name in (domain, "localhost") or _is_loopback(name):
        return WebHost()
    label, _, parent = name.partition(".")
    if parent not in (domain, "localhost") or not is_label(label):
        hosts = f"{domain} and SERVICE{SEPARATOR}NODE.{domain}"
        raise Refused(Reason.NOT_FOUND, f"{name} is not a host of this server; its hosts are {hosts}")
    service, separator, alias = label.partition(SEPARATOR)
    if not separator or not is_service_name(service) or not is_service_name(alias):
        raise Refused(Reason.NOT_FOUND, f"{name} is not of the form SERVICE--NODE.{parent}")
    return WebHost(service, alias)


def canonical_authority(host: str) -> str:
    """Return a ``Host`` header in lower case. Raises ``Refused`` if it is none, or ends with a dot.

    A browser takes the name with a dot at its end for another origin, with cookies of its own.
    """
    _host_name(host)
    if (host.rpartition(":")[0] if _has_port(host) else host).endswith("."):
        raise Refused(Reason.BAD_REQUEST, "the host ends with a dot; write it without")
    return host.lower()


def _host_name(host: str) -> str:
    try:
        # Browsers omit the scheme's default port. The parser needs a port, and any number will do.
        return split_host_port(host if _has_port(host) else f"{host}:80")[0]
    except ValueError as error:
        raise Refused(Reason.BAD_REQUEST, f"the Host header is not a host: {error}") from None


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
