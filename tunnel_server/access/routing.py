"""Which node and target a user means: CONNECT authorities and web hosts. Decides without I/O."""

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
"""Request header that overrides the target of a CONNECT; the authority then only names the node."""
SEPARATOR = "--"
"""Between service and node alias in a web host: neither can contain it."""


class Directory(Protocol):
    """What routing asks of the registry of nodes."""

    def name_of(self, text: str) -> str | None:
        """The full name behind a name or alias; raises ``Refused(AMBIGUOUS_NAME)``."""

    def nearest(self, text: str) -> str | None:
        """The known name most like ``text``."""


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """A node by its full name, and what its agent is to dial."""

    node: str
    target: Target


def route_authority(authority: str, directory: Directory, target: str | None = None) -> NodeRoute:
    """Reads ``node:port`` or ``service.node:port``; the longest node name that exists wins.

    With ``target`` (from ``Qanat-Target``) the host must name a node and the port means nothing.
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
        # A node may be called "42" or "shop.7", which as a host name would be a broken IPv4 address.
        return host, split_host_port(f"{LOOPBACK}:{port}")[1]
    return split_host_port(authority)


def _refuse_address(host: str) -> None:
    # Two nodes behind two NATs may have the same address, so an address alone names nobody.
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
    near = directory.nearest(host)
    if near is None and rest:
        near = directory.nearest(rest)
    return unknown_node(host, near)


def target_header(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The ``Qanat-Target`` of a request, if it has one; two of them are ambiguous.

    Its value is UTF-8, sent as it is: only the path of a unix socket has other than ASCII characters.
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
    """A ``Host`` header as the web entrance reads it: a service of a node, or the index (both empty)."""

    service: str = ""
    alias: str = ""


def route_web_host(host: str, domain: str) -> WebHost:
    """Reads ``service--alias.<domain>``, the bare domain, or the same under ``localhost``.

    Any other host is refused: a name of somebody else that resolves to us (DNS rebinding) must
    not let their page read what our users may.
    """
    name = _host_name(host)
    if name in (domain, "localhost") or _is_loopback(name):
        return WebHost()
    label, _, parent = name.partition(".")
    if parent not in (domain, "localhost") or not is_label(label):
        raise Refused(Reason.NOT_FOUND, f"{name} is not a host of this server; try http://{domain}/")
    service, separator, alias = label.partition(SEPARATOR)
    if not separator or not is_service_name(service) or not is_service_name(alias):
        raise Refused(Reason.NOT_FOUND, f"{name} is not of the form SERVICE--NODE.{parent}")
    return WebHost(service, alias)


def _host_name(host: str) -> str:
    try:
        # A browser leaves the port out where it is the scheme's own; any will do to parse it.
        return split_host_port(host if _has_port(host) else f"{host}:80")[0]
    except ValueError as error:
        raise Refused(Reason.BAD_REQUEST, f"the Host header is not a host: {error}") from None


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
