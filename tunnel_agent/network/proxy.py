"""Choose the HTTP CONNECT proxy for a server from the configuration file, else from the environment.

1. ``proxy`` in the file wins, with the file's ``no_proxy`` alone. Otherwise ``https_proxy`` and
   ``all_proxy`` apply (lower case first), with ``no_proxy`` of the environment and of the file together.
2. A proxy of the environment is never used for loopback, because a demo on a laptop behind a proxy must work.
3. Only ``http://`` proxies are supported, because gRPC silently bypasses ``https://`` proxies. An error is
   better than an agent that leaves the network by a path that its owner did not choose.
4. ``no_proxy``: ``*``, a host (which covers its subdomains, as in curl and Go), ``.suffix``,
   ``*.suffix``, an address, a CIDR; each with an optional ``:port``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit

from tunnel_core.names import LOOPBACK, join_host_port, split_host_port

_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_DEFAULT_PORT = 80


class ProxyError(ValueError):
    """A proxy setting that cannot be used. The text is a sentence for the user, without secrets."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. Printing one never shows its password."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """``http://user:password@host:port``, percent-encoded. It is secret; only the dial uses it."""
        login = quote(self.user, safe="") + (f":{quote(self.password, safe='')}" if self.password else "")
        return f"http://{login}@{self.address}" if login else f"http://{self.address}"

    @property
    def address(self) -> str:
        """``host:port``, without the user."""
        return join_host_port(self.host, self.port)

    def __str__(self) -> str:
        return f"http://{self.address}"


def choose_proxy(
    server: str,
    *,
    proxy: str = "",
    password: str = "",
    no_proxy: Sequence[str] = (),
    environment: Mapping[str, str],
) -> Proxy | None:
    """Return the proxy for ``server`` (``host:port``), or None for a direct dial. Raises ``ProxyError``."""
    host, port = split_host_port(server)
    if proxy:
        chosen = parse_proxy(proxy, origin="proxy in the configuration", password=password)
        return None if is_exempt(host, port, no_proxy) else chosen
    variable = next((name for name in _VARIABLES if environment.get(name)), "")
    if not variable or _is_loopback(host):
        return None
    exempt = [*no_proxy, *_environment_exemptions(environment)]
    if is_exempt(host, port, exempt):
        return None
    return parse_proxy(environment[variable], origin=f"the environment's {variable}", password=password)


def _environment_exemptions(environment: Mapping[str, str]) -> list[str]:
    text = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return text.replace(",", " ").split()


def parse_proxy(text: str, *, origin: str, password: str = "") -> Proxy:
    """Parse ``[http://][user[:password]@]host[:port]``; ``password`` applies if the URL has none.

    ``origin`` names the setting in errors. Raises ``ProxyError``.
    """
    parts = _split(text, origin)
    if parts.scheme != "http":
        fix = "the agent speaks to proxies over http:// only; their CONNECT tunnel carries its TLS"
        raise ProxyError(f"{origin} is a {parts.scheme}:// proxy: {fix}")
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ProxyError(f"{origin} is not http://host:port")
    user, own_password = unquote(parts.username or ""), unquote(parts.password or "")
    try:
        bracketed = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        host, port = split_host_port(f"{bracketed}:{parts.port or _DEFAULT_PORT}")
    except ValueError:  # the error's text may contain the password
        raise ProxyError(f"{origin} is not http://host:port") from None
    return Proxy(host, port, user, own_password or password)


def _split(text: str, origin: str) -> SplitResult:
    try:
        return urlsplit(text if "://" in text else f"http://{text}")
    except ValueError:
        raise ProxyError(f"{origin} is not http://host:port") from None


def _is_loopback(host: str) -> bool:
    address = _maybe_address(host)
    return host == LOOPBACK or (address is not None and address.is_loopback)


def is_exempt(host: str, port: int, rules: Iterable[str]) -> bool:
    """Whether one of the ``no_proxy`` rules covers the server."""
    return any(_covers(rule.strip().lower(), host, port) for rule in rules)


def _covers(rule: str, host: str, port: int) -> bool:
    name, wanted_port = _split_rule(rule)
    if not name or wanted_port not in {None, port}:
        return False
    if name == "*":
        return True
    address = _maybe_address(host)
    if address is not None:
        return _network_covers(name, address)
    suffix = name.removeprefix("*").strip(".")
    return bool(suffix) and (host.endswith(f".{suffix}") or (host == suffix and name[0] not in "*."))


def _split_rule(rule: str) -> tuple[str, int | None]:
    """Split ``host[:port]`` or a bare IPv6 address or CIDR. Any other rule covers nothing."""
    if rule.startswith("["):
        name, _, port = rule[1:].partition("]")
        port = port.removeprefix(":")
    elif rule.count(":") == 1:
        name, _, port = rule.partition(":")
    else:
        name, port = rule, ""
    if port and not (port.isascii() and port.isdigit()):
        return "", None
    return name, int(port) if port else None


def _network_covers(rule: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False


def _maybe_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
