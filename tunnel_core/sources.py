"""Addresses of peers, and their sources for limits per source. No I/O."""

from __future__ import annotations

import functools
import ipaddress

LOCAL = "local"
"""The source of unix sockets. The file's mode decides who connects, so only the total bounds them."""


def host_of(address: str) -> str:
    """Return the host in ``192.0.2.1:80`` or ``[2001:db8::1]:80``, without brackets; empty without a port."""
    return address.rpartition(":")[0].strip("[]")


@functools.lru_cache(1024)
def source_of(address: str) -> str:
    """Return the source of an address: an IPv4 address, or an IPv6 /64, as one customer gets (RFC 6177)."""
    if not address:
        return LOCAL
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
