"""The few messages of Linux's rtnetlink that tell which way an address is reached. No I/O.

A question (RTM_GETROUTE) gets the route that a packet to the address would take now, with every rule,
table and metric applied: the kernel decides, nobody here guesses. man 7 rtnetlink has the layouts,
which are in the machine's own byte order. What cannot be read is no answer, never an exception.
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
_USABLE = {1, 2}  # unicast, local; the others throw away or refuse

# RTNLGRP_ numbers less one as bits. Link changes too: IPv4 routes that go with their interface are
# announced by nothing else. Rules too: a VPN that comes up may change nothing but them.
GROUPS = sum(1 << number - 1 for number in (1, 5, 7, 8, 9, 11, 19))


class KernelRoute(NamedTuple):
    """The way to an address. ``gateway`` and ``source`` are empty where there is none."""

    interface: int
    source: str
    gateway: str


def route_question(address: str, sequence: int) -> bytes:
    """Asks which way ``address`` is reached. Raises ``ValueError`` if it is no IP address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    packed = ip.packed
    route = _ROUTE.pack(_FAMILIES[ip.version], len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body = route + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
    return _HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, sequence, 0) + body


class Answer(NamedTuple):
    """What the kernel said to a question. ``route`` is None if there is no way."""

    sequence: int
    route: KernelRoute | None


def read_answers(data: bytes) -> Iterator[Answer]:
    """The answers in a datagram; what is no answer, or not whole, is left out."""
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
    found = dict(_attributes(body[_ROUTE.size :]))
    interface = found.get(_INTERFACE, b"")
    if len(interface) != _NUMBER.size:
        return None
    # An IPv4 route through an IPv6 neighbour has its gateway after two bytes that name the family.
    gateway = found.get(_GATEWAY) or found.get(_VIA, b"")[2:]
    return KernelRoute(_NUMBER.unpack(interface)[0], _text(found.get(_SOURCE, b"")), _text(gateway))


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
