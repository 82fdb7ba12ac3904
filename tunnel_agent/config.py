"""The agent's configuration: the keys of ``agent.toml`` with their defaults and checks. No I/O."""

# ruff: noqa: RUF009 - the default's calls return immutable values

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from tunnel_agent.defaults import OPS_LISTEN
from tunnel_agent.network.proxy import ProxyError, parse_proxy
from tunnel_agent.targets.policy import AllowEntry, parse_entry
from tunnel_core.config.types import (
    InvalidValueError,
    Log,
    Ops,
    Parsers,
    PoolBytes,
    Seconds,
    SecondsOrNone,
    Secret,
    ServerAddress,
    ServiceName,
    as_invalid,
    parse_text,
)
from tunnel_core.names import Target
from tunnel_core.session.profiles import ProfileName
from tunnel_core.session.ranges import HELLO
from tunnel_core.version import __version__

if TYPE_CHECKING:
    from tunnel_core.config.loader import Source

MIN_BYTES_PER_SECOND = HELLO["max_bytes_per_second"].least
"""With less, the link could not carry its own pings and acknowledgements."""
MAX_BYTES_PER_SECOND = HELLO["max_bytes_per_second"].most
SOFTWARE = f"qanat-agent/{__version__}"
STATUS_SERVICE = "status"
"""The built-in service: the agent's own status page."""


class Protocol(enum.Enum):
    """Protocol of a published service."""

    HTTP = "http"
    HTTPS = "https"
    TCP = "tcp"


@attrs.frozen(kw_only=True)
class Service:
    """A target published under a name; publishing it allows it. ``ca_file`` and ``verify`` are for https."""

    name: ServiceName
    target: Target
    protocol: Protocol = Protocol.TCP
    ca_file: Path | None = None
    verify: bool = True

    def __attrs_post_init__(self) -> None:
        if self.target.service:
            fix = 'write "host:port", "[v6]:port" or "unix:/path"'
            raise InvalidValueError(f"{self.target} is a service name, not an address", fix, "target")
        if self.name == STATUS_SERVICE:
            raise InvalidValueError("status is the built-in status page", "choose another name", "name")


@attrs.frozen(kw_only=True)
class Session:
    """Times of a session with a server."""

    connect_timeout_seconds: Seconds = Seconds(10.0)
    attach_timeout_seconds: Seconds = Seconds(10.0)
    retry_max_seconds: Seconds = Seconds(30.0)
    """The cap of the back-off; waits are random between 0 and the back-off (full jitter)."""
    half_closed_seconds: SecondsOrNone = SecondsOrNone(600.0)
    """How long a stream of which one half has ended may stay without a byte; 0: for ever."""
    pool_bytes: PoolBytes = PoolBytes(0)
    """Size of the pool of windows, and of that of sent bytes; 0: an eighth of the memory, 256 MiB at most."""


@attrs.frozen(kw_only=True)
class Link:
    """Cost profile and rate cap of the link to the server."""

    profile: ProfileName = ProfileName.DEFAULT
    max_bytes_per_second: int = 0
    """In each direction; 0: no cap."""

    def __attrs_post_init__(self) -> None:
        rate = self.max_bytes_per_second
        if rate and not MIN_BYTES_PER_SECOND <= rate <= MAX_BYTES_PER_SECOND:
            fix = f"write 0 for no cap, or a number from {MIN_BYTES_PER_SECOND}"
            raise InvalidValueError(f"{rate} bytes a second is out of range", fix, "max_bytes_per_second")


class ProxyUrl(Secret):
    """URL that may contain a password, so it is never printed."""


def _proxy_url(value: object) -> ProxyUrl:
    if not isinstance(value, str):
        raise InvalidValueError("is not a string", 'write "http://host:port"')
    try:
        if value:
            parse_proxy(value, origin="it")
    except ProxyError as error:
        raise InvalidValueError(str(error), 'write "http://host:port"') from None
    return ProxyUrl(value)


def _entry(value: object) -> AllowEntry:
    try:
        return parse_entry(parse_text(value))
    except ValueError as error:
        raise as_invalid(error, "") from None


@attrs.frozen(kw_only=True)
class AgentConfig:
    """The whole configuration. ``tunnel_core.config.loader.load(path, AgentConfig)`` makes it."""

    parsers: ClassVar[Parsers] = {AllowEntry: _entry, ProxyUrl: _proxy_url}

    bundle_file: Path
    ops: Ops
    servers: tuple[ServerAddress, ...] = ()
    """Empty: the bundle's servers."""
    proxy: ProxyUrl = ProxyUrl("")
    """``http://user:password@host:port``; empty: from the environment."""
    proxy_password_file: Path | None = None
    no_proxy: tuple[str, ...] = ()
    allow: tuple[AllowEntry, ...] = ()
    dial_timeout_seconds: Seconds = Seconds(10.0)
    drain_seconds: Seconds = Seconds(8.0)
    service: tuple[Service, ...] = ()
    session: Session = attrs.field(factory=Session)
    link: Link = attrs.field(factory=Link)
    log: Log = attrs.field(factory=Log)

    def __attrs_post_init__(self) -> None:
        names = [service.name for service in self.service]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InvalidValueError(
                f"{min(twice)} is named twice", "give each service its own name", "service"
            )

    @classmethod
    def defaults(cls, raw: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
        """Return the defaults: the bundle beside the configuration file, the ops listener on loopback."""
        return {"bundle_file": "node.pem", "ops": {"listen": OPS_LISTEN}}
