"""Messages of Linux's rtnetlink that ask for the route to an address. No I/O.

A request (RTM_GETROUTE) returns the route that a packet to the address would take now. The kernel applies
every rule, table and metric. man 7 rtnetlink has the layouts, which are in the machine's own byte order.
The parser skips what it cannot read and never raises.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, length of destination, of source, ..., type at 7, flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NUMBER = struct.Struct("=I")
_ERROR, _NEW_ROUTE, _GET_ROUTE = 2, 24, 26
_REQUEST = 1
_DESTINATION, _INTERFACE, _GATEWAY, _SOURCE, _VIA = 1, 4, 5, 7, 18
_TYPE_MASK = 0x3FFF  # the two high bits of an attribute's type are flags
_FAMILIES = {4: 2, 6: 10}  # as Linux numbers them
_ADDRESS_SIZES = {4, 16}
_USABLE = {1, 2}  # unicast, local; routes of the other types drop or reject packets

# RTNLGRP_ numbers minus one as bits. Links are included, because no other message announces IPv4 routes
# that vanish with their interface. Rules are included, because a VPN may change only rules.
GROUPS = sum(1 << number - 1 for number in (1, 5, 7, 8, 9, 11, 19))


class KernelRoute(NamedTuple):
    """Route to an address. ``gateway`` and ``source`` are empty if the route has none."""

    interface: int
    source: str
    gateway: str


def route_request(address: str, sequence: int) -> bytes:
    """Return the request for the route to ``address``. Raises ``ValueError`` if it is not an IP address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    packed = ip.packed
    route = _ROUTE.pack(_FAMILIES[ip.version], len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body = route + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
    return _HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, sequence, 0) + body


class Answer(NamedTuple):
    """The kernel's answer to the request with this ``sequence``. ``route`` is None without a usable route."""

    sequence: int
    route: KernelRoute | None


def read_answers(data: bytes) -> Iterator[Answer]:
    """Yield the answers in a datagram; skip other messages and incomplete ones."""
    for kind, sequence, body in _messages(data):
        if kind == _ERROR:
            yield Answer(sequence, None)
        elif kind == _NEW_ROUTE and len(body) >= _ROUTE.size:
            yield Answer(sequence, _route_of(body))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield kind, sequence, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _route_of(body: bytes) -> KernelRoute | None:
    if body[7] not in _USABLE:
        return None
    attributes = dict(_attributes(body[_ROUTE.size :]))
    interface = attributes.get(_INTERFACE, b"")
    if len(interface) != _NUMBER.size:
        return None
    # An IPv4 route through an IPv6 neighbour has its gateway after two bytes that name the family.
    gateway = attributes.get(_GATEWAY) or attributes.get(_VIA, b"")[2:]
    return KernelRoute(_NUMBER.unpack(interface)[0], _text(attributes.get(_SOURCE, b"")), _text(gateway))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _text(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed)) if len(packed) in _ADDRESS_SIZES else ""
