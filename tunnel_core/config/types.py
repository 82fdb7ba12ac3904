"""Types of configuration values, and the sections that server and agent share. No I/O."""

from __future__ import annotations

import enum
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NewType, TypeAlias

import attrs

from tunnel_core.identity import Role, SpiffeId, is_identity_name
from tunnel_core.limits import MIB
from tunnel_core.names import (
    NODE_NAME_RULE,
    Target,
    UrlGivenError,
    canonical_host,
    is_node_name,
    is_service_name,
    join_host_port,
    refuse_url,
    split_host_port,
)

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Seconds = NewType("Seconds", float)
"""A duration above zero and at most a year."""
SecondsOrNone = NewType("SecondsOrNone", float)
"""A duration as ``Seconds``, or 0 for none."""
Count = NewType("Count", int)
"""A whole number from 1."""
PoolBytes = NewType("PoolBytes", int)
"""A size in bytes of at least 1 MiB, or 0 for a size that follows the machine's memory."""
UserId = NewType("UserId", int)
Mode = NewType("Mode", int)
"""Permission bits."""
TrustDomain = NewType("TrustDomain", str)
NodeName = NewType("NodeName", str)
ServiceName = NewType("ServiceName", str)
UserName = NewType("UserName", str)
DnsName = NewType("DnsName", str)
ServerAddress = NewType("ServerAddress", str)
"""``host:port`` in canonical form."""
EntranceName = NewType("EntranceName", str)

ENTRANCES = ("connect", "tcp", "web", "api")
_LABELS = frozenset((*ENTRANCES, "agents", "https", "est", "admin", "ops"))
_UNPRIVILEGED_PORT = 1024
_YEAR_SECONDS = 365 * 24 * 3600


def entrance_label(entrance: str) -> str:
    """Return the name of a known entrance, else ``other``, because a server may send its agents any name."""
    return entrance if entrance in _LABELS else "other"


class InvalidValueError(ValueError):
    """Raised for an invalid value. ``key`` is a key in the section, if the section was checked as a whole."""

    def __init__(self, message: str, fix: str = "", key: str = "") -> None:
        super().__init__(message, fix, key)
        self.message = message
        self.fix = fix
        self.key = key


class Secret:
    """A text that ``repr``, ``str`` and ``format`` hide, so that it is never printed by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(hidden)" if self._text else "Secret()"


@attrs.frozen
class ListenAddress:
    """Address of a listener; port 0 lets the kernel choose. ``str`` is ``host:port`` or ``[v6]:port``."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # another name may resolve to any address
            return False

    @property
    def is_privileged(self) -> bool:
        """Whether only root, or a program with ``CAP_NET_BIND_SERVICE``, may listen at the address."""
        return 0 < self.port < _UNPRIVILEGED_PORT

    def collides_with(self, other: ListenAddress) -> bool:
        """Whether the kernel refuses to listen on both addresses. Host names are compared as names."""
        if self.port == 0 or self.port != other.port:
            return False
        mine, others = _listened(self.host), _listened(other.host)
        return "::" in mine | others or not mine.isdisjoint(others) or _is_covered(mine, others)

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def _listened(host: str) -> set[str]:
    return {"127.0.0.1", "::1"} if host == "localhost" else {host}


def _is_covered(mine: set[str], others: set[str]) -> bool:
    """Whether one is ``0.0.0.0`` and the other is an IPv4 address or a name, which may resolve to one."""
    either = mine | others
    return "0.0.0.0" in either and any(":" not in host for host in (others if "0.0.0.0" in mine else mine))


class LogLevel(enum.Enum):
    """Lowest level of Qanat's own lines that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.Enum):
    """Format of log lines; ``AUTO`` is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class StreamLog(enum.Enum):
    """Which streams are logged when they open and close."""

    ALL = "all"
    ERRORS = "errors"
    NONE = "none"


@attrs.frozen
class Log:
    """The section ``[log]``."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO
    streams: StreamLog = StreamLog.ALL
    entrances: Mapping[EntranceName, StreamLog] = attrs.field(factory=dict)

    def streams_of(self, entrance: str) -> StreamLog:
        """Return which streams of an entrance are logged."""
        return self.entrances.get(EntranceName(entrance), self.streams)


@attrs.frozen
class Ops:
    """The listener for probes and scrapes. ``listen`` is None if ``""`` switches the listener off."""

    listen: ListenAddress | None = None
    tls: bool = False
    bearer_file: Path | None = None


def parse_text(value: object) -> str:
    """Return ``value`` if it is a text. Raises ``InvalidValueError``."""
    if not isinstance(value, str):
        raise InvalidValueError(f"{value!r:.80} is not a string", "write it in quotes")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError(f"{value!r:.80} is not a boolean", "write true or false")
    return value


def _whole_number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValueError(f"{value!r:.80} is not a whole number", "write it without quotes")
    return value


def _count(value: object) -> int:
    if not 1 <= (number := _whole_number(value)) <= 2**31:
        raise InvalidValueError(f"{number} is out of range", "write a number from 1")
    return number


def _pool_bytes(value: object) -> int:
    number = _whole_number(value)
    if number and not MIB <= number <= 2**40:
        raise InvalidValueError(f"{number} bytes is out of range", f"write 0, or a number from {MIB}")
    return number


def _user_id(value: object) -> int:
    if not 0 <= (number := _whole_number(value)) < 2**32 - 1:
        raise InvalidValueError(f"{number} is not a user id", "write a number from 0, as `id -u` prints it")
    return number


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidValueError(
            f"{value!r:.80} is not a number of seconds", "write a number without quotes or unit"
        )
    if not (math.isfinite(value) and 0 < value <= _YEAR_SECONDS):
        raise InvalidValueError(f"{value} seconds is out of range", "write a number above 0")
    return float(value)


def _seconds_or_none(value: object) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else _seconds(value)


def _mode(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch("0?[0-7]{3}", value):
        raise InvalidValueError(
            f"{value!r:.80} is not a file mode", 'write it octal and in quotes, for example "0600"'
        )
    return int(value, 8)


def _listen(value: object) -> ListenAddress:
    text = parse_text(value)
    host, _, port = text.rpartition(":")
    try:
        refuse_url(text)
        name, number = split_host_port(f"{host}:1" if port == "0" else text)
    except ValueError as error:
        raise as_invalid(error, 'write "127.0.0.1:7002", "[::]:7002" or "localhost:7002"') from None
    return ListenAddress(name, 0 if port == "0" else number)


def _maybe_listen(value: object) -> ListenAddress | None:
    return None if value == "" else _listen(value)


def _server_address(value: object) -> str:
    try:
        return join_host_port(*split_host_port(parse_text(value)))
    except ValueError as error:
        raise as_invalid(error, 'write "tunnel.example.com:7001" or "[2001:db8::1]:7001"') from None


def _network(value: object) -> Network:
    try:
        return ipaddress.ip_network(parse_text(value))
    except ValueError as error:
        raise as_invalid(error, 'write a CIDR such as "10.0.0.0/8" or "2001:db8::/32"') from None


def _target(value: object) -> Target:
    try:
        return Target.parse(parse_text(value))
    except UrlGivenError as error:
        fix = 'for browsers a [[service]] also has protocol = "http" or "https"'
        raise InvalidValueError(str(error), fix) from None
    except ValueError as error:
        raise as_invalid(error, 'write "host:port", "[v6]:port", "unix:/path" or a service name') from None


def as_invalid(error: ValueError, fix: str) -> InvalidValueError:
    """Return ``error`` as an ``InvalidValueError`` with a fix; one that is invalid already stays as it is."""
    if isinstance(error, InvalidValueError):
        return error
    return InvalidValueError(str(error), "" if isinstance(error, UrlGivenError) else fix)


def _dns_name(value: object) -> str:
    try:
        refuse_url(text := parse_text(value), has_port=False)
        return canonical_host(text)
    except ValueError as error:
        raise as_invalid(error, 'write a DNS name such as "tunnel.example.com"') from None


def _trust_domain(value: object) -> str:
    try:
        return SpiffeId(parse_text(value), Role.NODE, "any").trust_domain
    except ValueError as error:
        raise as_invalid(
            error, 'write lower-case letters, digits, dots and dashes: "qanat.internal"'
        ) from None


def _name(is_good: Callable[[str], bool], kind: str, fix: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = parse_text(value)
        if not is_good(text):
            raise InvalidValueError(f"{text[:300]!r} is not {kind}", fix)
        return text

    return parse


def _is_user_name(text: str) -> bool:
    return is_identity_name(Role.USER, text)


def _secret(value: object) -> Secret:
    if not isinstance(value, str):
        raise InvalidValueError("is not a string", "write it in quotes")  # the value is secret
    return Secret(value)


Parsers: TypeAlias = Mapping[Any, Callable[[object], Any]]

PARSERS: Parsers = {
    str: parse_text,
    bool: _boolean,
    int: _whole_number,
    Count: _count,
    PoolBytes: _pool_bytes,
    UserId: _user_id,
    Seconds: _seconds,
    SecondsOrNone: _seconds_or_none,
    Mode: _mode,
    Secret: _secret,
    Network: _network,
    Target: _target,
    ListenAddress: _listen,
    ListenAddress | None: _maybe_listen,
    ServerAddress: _server_address,
    DnsName: _dns_name,
    TrustDomain: _trust_domain,
    NodeName: _name(is_node_name, "a node name", f"write {NODE_NAME_RULE}"),
    ServiceName: _name(is_service_name, "a service name", "write lower-case letters, digits, single dashes"),
    UserName: _name(_is_user_name, "a user name", "write lower-case letters, digits and . _ @ -"),
    EntranceName: _name(ENTRANCES.__contains__, "an entrance", f"known: {', '.join(ENTRANCES)}"),
}
"""Parser of each type, from a TOML value. A parser raises ``InvalidValueError`` only."""
