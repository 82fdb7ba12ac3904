"""What the headers of a reverse proxy in front of this server say about its browser. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from tunnel_core.config.types import Network
from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.messages import BrowserRequest, listed

_SCHEMES = {b"http": b"http", b"https": b"https", b"ws": b"http", b"wss": b"https"}
_MAX_HOPS = 32
"""Proxies in one ``X-Forwarded-For``."""


class TrustedProxies:
    """Proxies in ``networks``, whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed.

    Their ``X-Forwarded-Host`` is not, because proxies pass on what the browser wrote there. ``Host`` alone
    names the virtual host.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    def apply(self, request: BrowserRequest, peer: str) -> BrowserRequest:
        """Return ``request`` as the browser sent it to the proxy at the address ``peer``.

        The request of another peer stays as it is, whatever its headers say. Raises ``Refused`` if a trusted
        proxy sent a header that has no meaning.
        """
        if not self._networks or not self._trusts(peer):
            return request
        source = self._source(request, peer)
        return replace(request, source=source, scheme=_scheme(request), is_proxied=True)

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def _source(self, request: BrowserRequest, peer: str) -> str:
        """Return the newest address of ``X-Forwarded-For`` that is no trusted proxy's.

        Each proxy appends the address of its peer. So the browser may have written all addresses before it.
        """
        source = peer
        for value in reversed(listed(request.values(b"x-forwarded-for"))[-_MAX_HOPS:]):
            try:
                source = str(ipaddress.ip_address(_without_port(value.decode("ascii"))))
            except ValueError:
                raise _malformed("X-Forwarded-For") from None
            if not self._trusts(source):
                break
        return source


def _without_port(text: str) -> str:
    """Return the address in ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1`` or ``[2001:db8::1]:80``."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _scheme(request: BrowserRequest) -> bytes:
    named = b"".join(listed(request.values(b"x-forwarded-proto"))[-1:])
    if not named:
        return request.scheme
    if named not in _SCHEMES:
        raise _malformed("X-Forwarded-Proto")
    return _SCHEMES[named]


def _malformed(name: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, f"the proxy in front of this server sent a malformed {name}")
