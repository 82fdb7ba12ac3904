"""Parse the names that people type: nodes, services, aliases and targets. The rules are strict."""

from __future__ import annotations

import base64
import functools
import hashlib
import ipaddress
import re
import unicodedata
from dataclasses import dataclass

# RFC 1123 as Kubernetes applies it to node names: apimachinery's IsDNS1123Subdomain.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Names of hosts in use, for example services of a compose file: docker's DNS has `my_db`. Resolvers accept
# them.
_HOST_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
MAX_NODE_NAME = 253
NODE_NAME_RULE = "lower-case letters, digits, '-' and dots, as in shop-7.example.com"
"""The rule for node names, for messages."""
MAX_ALIAS = 40
_ALIAS_HASH_CHARS = 8
_MAX_UNIX_PATH = 107
LOOPBACK = "localhost"
"""A target host that means the node itself: the agent tries 127.0.0.1, then ::1, and uses no resolver."""


def is_label(text: str) -> bool:
    """Whether ``text`` is one lower-case RFC 1123 DNS label."""
    return _LABEL.fullmatch(text) is not None


def is_node_name(text: str) -> bool:
    """Whether ``text`` is an RFC 1123 subdomain: labels joined by dots, 253 characters at most."""
    return 0 < len(text) <= MAX_NODE_NAME and all(map(is_label, text.split(".")))


def is_host_name(text: str) -> bool:
    """Whether ``text`` may be the name of a host to dial: a node name that may also contain ``_``."""
    return 0 < len(text) <= MAX_NODE_NAME and all(map(_HOST_LABEL.fullmatch, text.split(".")))


def is_service_name(text: str) -> bool:
    """Whether ``text`` is a label without ``--``, which separates service and node in a web host."""
    return is_label(text) and "--" not in text


def node_alias(node: str) -> str:
    """Return a stable name for ``node`` that fits a DNS label beside a service: 40 characters at most.

    A name that already fits is its own alias. Any other name is shortened and gets eight characters of its
    SHA-256. So two nodes share an alias only after a search of 2**40 hashes.
    """
    if len(node) <= MAX_ALIAS and is_service_name(node) and not _looks_hashed(node):
        return node
    digest = base64.b32encode(hashlib.sha256(node.encode()).digest()).decode().lower()[:_ALIAS_HASH_CHARS]
    stem = re.sub("-+", "-", node.replace(".", "-"))[: MAX_ALIAS - _ALIAS_HASH_CHARS - 1].strip("-")
    return f"{stem}-{digest}"


def _looks_hashed(node: str) -> bool:
    """Whether a name has the form of an alias. It gets a hash too, or it could be another node's alias."""
    return re.search(r"-[a-z2-7]{8}$", node) is not None


class UrlGivenError(ValueError):
    """Raised for a URL where an address belongs. The text has the address to write."""


def refuse_url(text: str, *, has_port: bool = True) -> None:
    """Raise ``UrlGivenError`` for a URL. ``has_port``: the address has a port here."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return
    address = rest.partition("/")[0].rpartition("@")[2]  # the part before @ may be a password
    port = _URL_PORTS.get(scheme.lower())
    if not has_port:
        address = re.sub(r":[0-9]+$", "", address)
    elif port and not re.search(r":[0-9]+$", address):
        address = f"{address}:{port}"
    raise UrlGivenError(f"a {scheme[:20]}:// URL stands where an address belongs; write {address[:300]!r}")


_URL_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """The target that an agent dials: a service, an address, or a unix socket. Exactly one is set."""

    service: str = ""
    host: str = ""
    port: int = 0
    unix_path: str = ""

    @classmethod
    @functools.lru_cache(256)
    def parse(cls, text: str) -> Target:
        """Parse ``name``, ``host:port``, ``[v6]:port`` or ``unix:/path``. Raises ``ValueError``."""
        refuse_url(text)
        if text.startswith("unix:"):
            return cls(unix_path=_unix_path(text.removeprefix("unix:")))
        if ":" not in text:
            if not is_service_name(text):
                raise ValueError(f"not a service name, host:port or unix:/path: {text[:300]!r}")
            return cls(service=text)
        host, port = split_host_port(text)
        return cls(host=host, port=port)

    def __str__(self) -> str:
        if self.service:
            return self.service
        return f"unix:{self.unix_path}" if self.unix_path else join_host_port(self.host, self.port)


def _unix_path(path: str) -> str:
    try:
        length = len(path.encode())
    except UnicodeEncodeError:  # from an argument or a file name that is not UTF-8
        raise ValueError(f"a socket path that is not UTF-8 cannot be asked for: {path[:300]!a}") from None
    # 107 bytes: sun_path less its final NUL, unix(7).
    if not path.startswith("/") or length > _MAX_UNIX_PATH:
        raise ValueError(f"not an absolute socket path of at most {_MAX_UNIX_PATH} bytes: {path[:300]!r}")
    # A header cannot carry these, and a log line should not.
    if path != path.rstrip() or any(unicodedata.category(character) == "Cc" for character in path):
        raise ValueError(f"a socket path with a control character, or a space at its end: {path[:300]!r}")
    return path


def split_host_port(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``. The returned host has no brackets and is in lower case.

    Raises ``ValueError`` for any other text: an IPv6 address without brackets, a missing or padded port, user
    info, a zone, or a name that ``is_host_name`` refuses.
    """
    refuse_url(text)
    host, separator, port_text = text.rpartition(":")
    if not separator or not re.fullmatch("[1-9][0-9]{0,4}", port_text) or int(port_text) > 65535:
        raise ValueError(f"no port from 1 to 65535 in {text[:300]!r}")
    if host.startswith("[") and host.endswith("]") and "%" not in host:
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port_text)
        except ValueError:
            raise ValueError(f"not an IPv6 address in brackets: {text[:300]!r}") from None
    return canonical_host(host), int(port_text)


def canonical_host(host: str) -> str:
    """Return the one spelling of an IPv4 address or DNS name. Raises ``ValueError`` for any other text."""
    lowered = host.lower().removesuffix(".") if host != "." else host
    last = lowered.rpartition(".")[2]
    if last.isdigit():  # WHATWG URL: a host that ends in a number is an IPv4 address or an error
        try:
            return str(ipaddress.IPv4Address(lowered))
        except ValueError:
            raise ValueError(f"not an IPv4 address: {host[:300]!r}") from None
    if not is_host_name(lowered):
        raise ValueError(f"not a host name: {host[:300]!r} (IPv6 addresses stand in brackets)")
    return lowered


def join_host_port(host: str, port: int) -> str:
    """Return ``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
