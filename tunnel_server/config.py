"""Keys of ``server.toml``, with their defaults and checks. No I/O."""

# ruff: noqa: RUF009 - calls in defaults return immutable values

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from tunnel_core.config.types import (
    Count,
    EntranceName,
    InvalidValueError,
    ListenAddress,
    Log,
    Mode,
    Network,
    NodeName,
    Ops,
    Parsers,
    PoolBytes,
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
from tunnel_server.web_config import Web

if TYPE_CHECKING:
    from tunnel_core.config.loader import Source

_PRIVATE = Mode(0o600)


class TlsVersion(enum.Enum):
    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


@attrs.frozen(kw_only=True)
class Tls:
    """Certificate and roots of both TLS listeners.

    ``trust_file`` has the roots for nodes, users and servers. ``user_trust_file`` has roots for users only.
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
    """The HTTPS listener: ``connect``, ``api`` and enrolment."""

    listen: tuple[ListenAddress, ...] = (ListenAddress("::", 7002),)


@attrs.frozen(kw_only=True)
class UnixPeer:
    uid: UserId
    user: UserName


@attrs.frozen(kw_only=True)
class ConnectUnix:
    """The ``connect`` entrance on a unix socket, for example for a kube-apiserver on the same machine."""

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
    """The admin socket. ``socket`` is in the data folder by default."""

    socket: Path
    mode: Mode = _PRIVATE

    def __attrs_post_init__(self) -> None:
        _check_socket_path(self.socket, "socket")


@attrs.frozen(kw_only=True)
class Tcp:
    """A local port bound to one target of one node."""

    listen: ListenAddress
    node: NodeName
    target: Target
    allow_from: tuple[Network, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not self.listen.is_loopback and not self.allow_from:
            why = f"{self.listen} is reachable from other machines, and a tcp entrance has no login"
            raise InvalidValueError(why, 'add allow_from = ["10.0.0.0/8"] or listen on loopback', "listen")


_SENT_TO_AGENTS = (
    ("ping_interval_seconds", "ping_interval_ms", 1000),
    ("missed_pings", "missed_pings", 1),
    ("grace_seconds", "grace_ms", 1000),
)
"""Settings that the welcome carries to agents: the key, the name on the wire, and the wire's units in one."""


@attrs.frozen(kw_only=True)
class Session:
    ping_interval_seconds: Seconds = Seconds(15.0)
    missed_pings: Count = Count(2)
    attach_timeout_seconds: Seconds = Seconds(10.0)
    max_streams: Count = Count(1024)
    max_streams_per_user: Count = Count(256)
    grace_seconds: SecondsOrNone = SecondsOrNone(120.0)
    """Time for which a session waits for a lost link; 0 ends it at once."""
    open_wait_seconds: SecondsOrNone = SecondsOrNone(3.0)
    """Time for which an open waits for a lost link."""
    half_closed_seconds: SecondsOrNone = SecondsOrNone(600.0)
    """Time for which a half-closed stream may carry no byte; 0 sets no bound."""
    pool_bytes: PoolBytes = PoolBytes(0)
    """Size of the pool of windows, and of that of sent bytes; 0: an eighth of the memory, 256 MiB at most."""

    def __attrs_post_init__(self) -> None:
        for key, name, unit in _SENT_TO_AGENTS:
            number, allowed = getattr(self, key), WELCOME[name]
            if not allowed.holds(number * unit):
                also = "0 or " if allowed.or_zero else ""
                fix = f"write {also}{allowed.least / unit:g} to {allowed.most / unit:g}"
                raise InvalidValueError(f"{number:g} is out of the range that agents accept", fix, key)


@attrs.frozen(kw_only=True)
class ListenerLimits:
    """Bounds of each listener, most of them for unauthenticated connections. Sizes are in bytes."""

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
    """Effect of a failed write to the audit: refuse the action, or drop the line."""

    REFUSE = "refuse"
    DROP = "drop"


@attrs.frozen(kw_only=True)
class AuditedStreams:
    """Records of the streams of one entrance: one of ``one_in`` streams, 0 for none, kept for ``keep_days``.

    Streams that the policy refused or ended are always recorded.
    """

    entrance: EntranceName
    one_in: int = 1
    keep_days: Count = Count(90)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.one_in <= 1_000_000:
            fix = "write 1 to record each stream, 100 for one of a hundred, or 0 for none"
            raise InvalidValueError(f"{self.one_in} is out of range", fix, "one_in")
        if self.entrance == "api":
            raise InvalidValueError("the entrance api has no streams", "name connect, web or tcp", "entrance")


@attrs.frozen(kw_only=True)
class Audit:
    """Audit of joins, renewals, revocations and refusals, and records of streams.

    ``file`` is in the data folder by default. With None there is no file. An entrance that ``streams`` does
    not name has the defaults of ``AuditedStreams``.
    """

    file: Path | None = None
    on_failure: OnFailure = OnFailure.DROP
    keep_days: Count = Count(400)
    keep_lines: Count = Count(1_000_000)
    keep_streams: Count = Count(1_000_000)
    streams: tuple[AuditedStreams, ...] = ()

    def __attrs_post_init__(self) -> None:
        if len({entry.entrance for entry in self.streams}) < len(self.streams):
            raise InvalidValueError("names one entrance twice", "give each entrance one entry", "streams")


@attrs.frozen(kw_only=True)
class Access:
    """Access of users. ``contact`` is whom a refused user asks: a name, an address or a URL."""

    contact: str = ""

    def __attrs_post_init__(self) -> None:
        if len(self.contact) > 80 or not (self.contact.isprintable() or not self.contact):
            fix = 'write a short text, for example "ops@example.com"'
            raise InvalidValueError("is not one printable line of at most 80 characters", fix, "contact")


@attrs.frozen(kw_only=True)
class Identity:
    """Validity of certificates that this server issues on request, and the bound on concurrent requests."""

    node_life_seconds: Seconds = Seconds(30 * 24 * 3600.0)
    user_life_seconds: Seconds = Seconds(30 * 24 * 3600.0)
    max_enrolments: Count = Count(32)


@attrs.frozen(kw_only=True)
class ServerConfig:
    """Whole configuration of a server. ``tunnel_core.config.loader.load(path, ServerConfig)`` creates it."""

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
    access: Access = attrs.field(factory=Access)
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
        """Files with keys, certificates, roots and the bearer token."""
        tls = self.tls
        named = (
            *(tls.key_file, tls.certificate_file, tls.trust_file),
            *(tls.user_trust_file, self.ops.bearer_file),
        )
        return tuple(file for file in named if file is not None)

    def _listeners(self) -> Iterator[tuple[str, ListenAddress]]:
        """Yield each address that the server listens on, with its key."""
        sections = (("agents", self.agents), ("https", self.https), ("web", self.web))
        for name, section in sections:
            yield from ((f"{name}.listen", address) for address in section.listen)
        if self.ops.listen is not None:
            yield "ops.listen", self.ops.listen
        for number, entrance in enumerate(self.tcp, 1):
            yield f"tcp#{number}.listen", entrance.listen

    @classmethod
    def defaults(cls, raw: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
        """Return the defaults that depend on the data folder."""
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


def session_limits(config: ServerConfig, pool_bytes: int) -> Limits:
    """Return the session limits of the configuration, with pools of ``pool_bytes`` each.

    Limits without a key keep their defaults.
    """
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
        credit_pool=pool_bytes,
        send_pool=pool_bytes,
    )


def _check_socket_path(path: Path, key: str) -> None:
    # 107 bytes: the size of sun_path without its final NUL, unix(7).
    if len(bytes(path)) > 107:
        raise InvalidValueError(
            "is longer than the 107 bytes that a unix socket may have", "choose another", key
        )
