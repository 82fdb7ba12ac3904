"""The two names of a service: the virtual host that browsers use, and the host that its target knows. No I/O.

Programs compare ``Host`` and ``Origin`` with their own address, and JupyterLab and Cockpit answer 403 to any
other. So the target reads its own address in ``Host``, ``Origin`` and ``Referer``. Its address in an answer
becomes the virtual host: in ``Location``, ``Content-Location``, ``Refresh``, ``Access-Control-Allow-Origin``
and ``Content-Security-Policy``. The target's own check of ``Origin`` is blind then, and ``refuse_cross_site``
replaces that check.

A program may also redirect to the virtual host with a port of its own (nginx does). That port is unknown to
browsers, so the virtual host with any port means the virtual host, also if the target keeps ``Host``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunnel_core.names import Target
from tunnel_core.wire.frames import Service
from tunnel_server.reverse_proxy.messages import Headers

_PORTS = {b"http": b"80", b"https": b"443", b"ws": b"80", b"wss": b"443"}
_URL = re.compile(rb"(?:([a-z]+):)?//([^/?#@\s]+)(?=[/?#]|$)", re.IGNORECASE)
_SOURCE = re.compile(
    rb"(?:([a-z]+)://)?([^/?#@\s;,':]+(?::[0-9]+)?|\[[0-9a-f:]+\](?::[0-9]+)?)(?=/|$)", re.IGNORECASE
)
_REFRESH = re.compile(rb"(\s*[0-9.]+\s*[;,]\s*(?:url\s*=\s*)?[\"']?)(.*)", re.IGNORECASE | re.DOTALL)
_URLS = frozenset({b"location", b"content-location"})
_POLICIES = frozenset({b"content-security-policy", b"content-security-policy-report-only"})


@dataclass(frozen=True, slots=True)
class Origin:
    """A scheme, ``http`` or ``https``, and a host with an optional port."""

    scheme: bytes
    authority: bytes

    def __bytes__(self) -> bytes:
        return self.scheme + b"://" + self.authority

    @property
    def host(self) -> bytes:
        """The host without port, in lower case."""
        return _split(self.authority)[0]

    @property
    def port(self) -> bytes:
        """The port, also if it is the scheme's default."""
        return _split(self.authority)[1] or _PORTS[self.scheme]


def origin_of(service: Service) -> Origin | None:
    """Return the address of a service as its own program knows it; None if the agent did not announce one."""
    scheme = b"https" if service.protocol == "https" else b"http"
    try:
        target = Target.parse(service.target)
    except ValueError:
        return None
    if target.unix_path:
        return Origin(scheme, b"localhost")
    host = f"[{target.host}]" if ":" in target.host else target.host
    port = b"%d" % target.port
    return Origin(scheme, host.encode() + (b"" if port == _PORTS[scheme] else b":" + port))


@dataclass(frozen=True, slots=True)
class Hosts:
    """The origin that browsers use, and the one of the target; None: the target reads the former."""

    public: Origin
    target: Origin | None = None

    @property
    def host(self) -> bytes:
        """The ``Host`` for the target."""
        return self.public.authority if self.target is None else self.target.authority

    def forward(self, headers: Headers) -> Headers:
        """Return the headers of a request as the target may read them."""
        return (
            headers
            if self.target is None
            else [(name, self._forward(name.lower(), value)) for name, value in headers]
        )

    def _forward(self, name: bytes, value: bytes) -> bytes:
        found = _URL.match(value) if name in (b"origin", b"referer") else None
        if found is None or _split(found.group(2))[0] != self.public.host:
            return value
        return bytes(self.target or self.public) + value[found.end() :]

    def back(self, headers: Headers) -> Headers:
        """Return the headers of an answer as the browser may read them."""
        return [(name, self._back(name.lower(), value)) for name, value in headers]

    def _back(self, name: bytes, value: bytes) -> bytes:
        if name in _URLS or name == b"access-control-allow-origin":
            return self._url(value)
        if name == b"refresh" and (found := _REFRESH.fullmatch(value)):
            return found.group(1) + self._url(found.group(2))
        if name in _POLICIES:
            return b";".join(
                b" ".join(self._source(token) for token in directive.split(b" "))
                for directive in value.split(b";")
            )
        return value

    def _url(self, url: bytes) -> bytes:
        found = _URL.match(url)
        if found is None:
            return url
        scheme, authority = found.groups()
        if not self._is_ours((scheme or self.public.scheme).lower(), authority):
            return url
        prefix = bytes(self.public) if scheme else b"//" + self.public.authority
        return prefix + url[found.end() :]

    def _source(self, token: bytes) -> bytes:
        """Return a source of a ``Content-Security-Policy``; others than hosts stay as they are."""
        found = _SOURCE.match(token)
        if found is None or not self._is_ours((found.group(1) or self.public.scheme).lower(), found.group(2)):
            return token
        scheme = found.group(1)
        if scheme is None:
            return self.public.authority + token[found.end() :]
        is_socket = scheme.lower() in (b"ws", b"wss")
        wanted = {b"http": b"ws", b"https": b"wss"}[self.public.scheme] if is_socket else self.public.scheme
        return wanted + b"://" + self.public.authority + token[found.end() :]

    def _is_ours(self, scheme: bytes, authority: bytes) -> bool:
        """Whether an address in an answer leads to the target or to its virtual host."""
        if scheme not in _PORTS:
            return False
        host, port = _split(authority)
        if host == self.public.host:
            return True
        if self.target is None or host != self.target.host:
            return False
        # A program in a container does not know its port outside, and names none.
        return port in (b"", _PORTS[scheme], self.target.port)


def _split(authority: bytes) -> tuple[bytes, bytes]:
    """Return host, in lower case, and port; an empty port if there is none."""
    host, colon, port = authority.rpartition(b":")
    if not colon or not port.isdigit():
        return authority.lower(), b""
    return host.lower(), port
