"""The server's configuration: what may stand in ``server.toml``, with its defaults and checks. No I/O."""

# ruff: noqa: RUF009 - what is called for a default gives an immutable value

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from tunnel_core.config.types import (
    Count,
    DnsName,
    InvalidValueError,
    ListenAddress,
    Log,
    Mode,
    Network,
    NodeName,
    Ops,
    Parsers,
    Seconds,
    SecondsOrNone,
    TrustDomain,
    UserId,
    UserName,
)
from tunnel_core.limits import Limits
from tunnel_core.names import Target
from tunnel_core.session.ranges import WELCOME
from tunnel_server.defaults import OPS_LISTEN

if TYPE_CHECKING:
    from tunnel_core.config.loader import Source

_PRIVATE = Mode(0o600)


class TlsVersion(enum.Enum):
    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


@attrs.frozen(kw_only=True)
class Tls:
    """What both TLS listeners show; ``trust_file`` holds the roots of nodes, users and servers.

    The roots in ``user_trust_file`` vouch for users alone.
    """

    certificate_file: Path
    key_file: Path
    trust_file: Path
    user_trust_file: Path | None = None
    min_version: TlsVersion = TlsVersion.TLS_1_3


@attrs.frozen(kw_only=True)
class Agents:
    listen: tuple[ListenAddress, ...] = (ListenAddress("::", 7001),)
    max: Count = Count(5000)

    def __attrs_post_init__(self) -> None:
        if not self.listen:
            raise InvalidValueError("is empty, so no agent could attach", 'write ["[::]:7001"]', "listen")


@attrs.frozen(kw_only=True)
class Https:
    """``connect`` and ``api`` over mTLS."""

    listen: tuple[ListenAddress, ...] = (ListenAddress("::", 7002),)


@attrs.frozen(kw_only=True)
class UnixPeer:
    uid: UserId
    user: UserName


@attrs.frozen(kw_only=True)
class ConnectUnix:
    """The ``connect`` entrance as a unix socket, as a kube-apiserver on the same machine uses it."""

    path: Path
    mode: Mode = _PRIVATE
    group: str = ""
    peer: tuple[UnixPeer, ...] = ()

    def __attrs_post_init__(self) -> None:
        _check_socket_path(self.path, "path")
        if len({peer.uid for peer in self.peer}) < len(self.peer):
            raise InvalidValueError("names one uid twice", "give each uid one user", "peer")


@attrs.frozen(kw_only=True)
class Connect:
    enabled: bool = True
    unix: ConnectUnix | None = None


@attrs.frozen(kw_only=True)
class Admin:
    """The local socket of ``qanat``; ``socket`` lies in the data folder unless it is named."""

    socket: Path
    mode: Mode = _PRIVATE

    def __attrs_post_init__(self) -> None:
        _check_socket_path(self.socket, "socket")


@attrs.frozen(kw_only=True)
class Web:
    listen: tuple[ListenAddress, ...] = (ListenAddress("127.0.0.1", 7003),)
    domain: DnsName = DnsName("localhost")

    def __attrs_post_init__(self) -> None:
        for address in self.listen:
            if not address.is_loopback:
                why = f"{address} is open to others, and the web entrance has no login yet"
                raise InvalidValueError(why, 'listen on loopback: "127.0.0.1:7003"', "listen")


@attrs.frozen(kw_only=True)
class Tcp:
    """A local port bound to one target of one node."""

    listen: ListenAddress
    node: NodeName
    target: Target
    allow_from: tuple[Network, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not self.listen.is_loopback and not self.allow_from:
            why = f"{self.listen} is open to others, and a tcp entrance asks nobody who they are"
            raise InvalidValueError(why, 'add allow_from = ["10.0.0.0/8"] or listen on loopback', "listen")


_TOLD = (
    ("ping_interval_seconds", "ping_interval_ms", 1000),
    ("missed_pings", "missed_pings", 1),
    ("grace_seconds", "grace_ms", 1000),
)
"""Settings that agents are told in the welcome: the key, the number on the wire, and its parts of one."""


@attrs.frozen(kw_only=True)
class Session:
    ping_interval_seconds: Seconds = Seconds(15.0)
    missed_pings: Count = Count(2)
    attach_timeout_seconds: Seconds = Seconds(10.0)
    max_streams: Count = Count(1024)
    max_streams_per_user: Count = Count(256)
    grace_seconds: SecondsOrNone = SecondsOrNone(120.0)
    """How long a session is kept without its link; 0: not at all."""
    open_wait_seconds: SecondsOrNone = SecondsOrNone(3.0)
    """How long an open waits for a link that is lost."""
    half_closed_seconds: SecondsOrNone = SecondsOrNone(600.0)
    """How long a stream of which one half has ended may be without a byte; 0: for ever."""

    def __attrs_post_init__(self) -> None:
        for key, name, unit in _TOLD:
            number, allowed = getattr(self, key), WELCOME[name]
            if not allowed.holds(number * unit):
                also = "0 or " if allowed.or_zero else ""
                fix = f"write {also}{allowed.least / unit:g} to {allowed.most / unit:g}"
                raise InvalidValueError(f"{number:g} is out of the range that agents accept", fix, key)


@attrs.frozen(kw_only=True)
class ListenerLimits:
    """Bounds of each listener, most of them before anybody is authenticated. Sizes in bytes."""

    head_bytes: Count = Count(16 * 1024)
    head_headers: Count = Count(100)
    head_seconds: Seconds = Seconds(10.0)
    idle_seconds: Seconds = Seconds(75.0)
    handshake_seconds: Seconds = Seconds(10.0)
    max_connections: Count = Count(10_000)
    max_connections_per_user: Count = Count(2500)
    max_unauthenticated: Count = Count(1024)
    max_unauthenticated_per_source: Count = Count(32)


@attrs.frozen(kw_only=True)
class Metrics:
    per_node: bool = True


class OnFailure(enum.Enum):
    """What becomes of an act whose line cannot be written to the audit."""

    REFUSE = "refuse"
    DROP = "drop"


@attrs.frozen(kw_only=True)
class Audit:
    """Who joined, renewed, was revoked or refused. ``file`` lies in the data folder; None: no file."""

    file: Path | None = None
    on_failure: OnFailure = OnFailure.DROP
    keep_days: Count = Count(400)
    keep_lines: Count = Count(1_000_000)


@attrs.frozen(kw_only=True)
class Identity:
    """Certificates that this server gives to those who ask for them, and how many may ask at once."""

    node_life_seconds: Seconds = Seconds(30 * 24 * 3600.0)
    user_life_seconds: Seconds = Seconds(30 * 24 * 3600.0)
    max_enrolments: Count = Count(32)


@attrs.frozen(kw_only=True)
class ServerConfig:
    """All of it. Made by ``tunnel_core.config.loader.load(path, ServerConfig)``."""

    parsers: ClassVar[Parsers] = {}

    data_dir: Path
    tls: Tls
    admin: Admin
    ops: Ops
    trust_domain: TrustDomain = TrustDomain("qanat.internal")
    drain_seconds: Seconds = Seconds(8.0)
    open_timeout_seconds: Seconds = Seconds(30.0)
    agents: Agents = attrs.field(factory=Agents)
    https: Https = attrs.field(factory=Https)
    connect: Connect = attrs.field(factory=Connect)
    web: Web = attrs.field(factory=Web)
    tcp: tuple[Tcp, ...] = ()
    session: Session = attrs.field(factory=Session)
    limits: ListenerLimits = attrs.field(factory=ListenerLimits)
    log: Log = attrs.field(factory=Log)
    metrics: Metrics = attrs.field(factory=Metrics)
    audit: Audit = attrs.field(factory=Audit)
    identity: Identity = attrs.field(factory=Identity)

    def __attrs_post_init__(self) -> None:
        seen: list[tuple[str, ListenAddress]] = []
        for key, address in self._listeners():
            for other_key, other in seen:
                if address.collides_with(other):
                    why = f"{address} cannot be listened on, because {other_key} has {other}"
                    raise InvalidValueError(why, "give one of the two another port", key)
            seen.append((key, address))
        unix = self.connect.unix
        if unix is not None and self.connect.enabled and unix.path == self.admin.socket:
            fix = "give one of the two another file name"
            raise InvalidValueError(f"{unix.path} is the socket of [admin] too", fix, "connect.unix.path")

    @property
    def credential_files(self) -> tuple[Path, ...]:
        """The files with keys, certificates, roots and the bearer token, wherever they lie."""
        tls = self.tls
        named = (
            *(tls.key_file, tls.certificate_file, tls.trust_file),
            *(tls.user_trust_file, self.ops.bearer_file),
        )
        return tuple(file for file in named if file is not None)

    def _listeners(self) -> Iterator[tuple[str, ListenAddress]]:
        """Every address that the server listens on, each with its key."""
        sections = (("agents", self.agents), ("https", self.https), ("web", self.web))
        for name, section in sections:
            yield from ((f"{name}.listen", address) for address in section.listen)
        if self.ops.listen is not None:
            yield "ops.listen", self.ops.listen
        for number, entrance in enumerate(self.tcp, 1):
            yield f"tcp#{number}.listen", entrance.listen

    @classmethod
    def defaults(cls, raw: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
        """What lies in the data folder unless the file says otherwise."""
        named = raw.get("data_dir")
        data_dir = named if isinstance(named, str) and named else str(source.data_dir)
        return {
            "data_dir": data_dir,
            "tls": {
                "certificate_file": f"{data_dir}/server.pem",
                "key_file": f"{data_dir}/server.key",
                "trust_file": f"{data_dir}/trust.pem",
            },
            "admin": {"socket": f"{data_dir}/admin.sock"},
            "ops": {"listen": OPS_LISTEN},
            "audit": {"file": f"{data_dir}/audit.jsonl"},
        }


def session_limits(config: ServerConfig) -> Limits:
    """Return the limits of sessions that the configuration says; the others stay at their defaults."""
    session = config.session
    return Limits(
        max_streams=session.max_streams,
        max_streams_per_user=session.max_streams_per_user,
        ping_interval_seconds=session.ping_interval_seconds,
        missed_pings=session.missed_pings,
        attach_timeout_seconds=session.attach_timeout_seconds,
        open_timeout_seconds=config.open_timeout_seconds,
        grace_seconds=session.grace_seconds,
        open_wait_seconds=session.open_wait_seconds,
    )


def _check_socket_path(path: Path, key: str) -> None:
    # 107 bytes: sun_path less its final NUL, unix(7).
    if len(bytes(path)) > 107:
        raise InvalidValueError(
            "is longer than the 107 bytes that a unix socket may have", "choose another", key
        )
