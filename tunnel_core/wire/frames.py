"""Packets and frames as plain values. ``codec.py`` turns them into bytes and back.

Frames are named tuples, because a session makes one for every few bytes: they are cheap to build, immutable,
and comparable in tests. Every stream frame may arrive twice and must mean the same the second time (offsets
and credit are absolute), because resumption retransmits content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from tunnel_core.reasons import Reason

Payload: TypeAlias = bytes | bytearray | memoryview
"""Bytes of a stream. Its owner may keep a view for any time, because no code writes to the bytes below it."""


class SessionSecret(bytes):
    """The secret that, with the node's certificate, allows an agent to resume the session. Never printed."""

    def __repr__(self) -> str:
        return "<secret>" if self else "<no secret>"


class Service(NamedTuple):
    """A target that the agent publishes under a name."""

    name: str
    protocol: str  # "http", "https" or "tcp"
    target: str = ""  # for people; the agent alone decides what it dials


class Hello(NamedTuple):
    """Agent to server, first frame of every carrier: the agent's run, its session, and packets it has."""

    version: int
    attempt: int  # rises with each carrier of this session
    instance: bytes  # 16 random bytes, one per agent process
    boot: bytes  # the machine's boot id
    software: str  # e.g. "qanat-agent/0.1.0"
    session: bytes = b""  # to resume; empty for a new session
    secret: SessionSecret = SessionSecret()
    have: int = 0  # highest packet number received in order
    services: tuple[Service, ...] = ()
    features: tuple[str, ...] = ()
    initial_credit: int = 0  # bytes that the server may send on a new stream before any grant
    metered: bool = False  # both ends use the metered profile
    max_bytes_per_second: int = 0  # cap on the bytes that the server sends; 0: no cap
    use: bool = False  # acts as ``Use`` too; for an old session only


class Welcome(NamedTuple):
    """Server to agent: the attempt may be used, or is in use (``used``).

    No frame of the session moves before.
    """

    version: int
    session: bytes
    secret: SessionSecret
    have: int
    software: str
    ping_interval_ms: int
    missed_pings: int
    max_streams: int
    early_data_limit: int
    initial_credit: int
    alias: str = ""
    replica: str = ""
    replica_address: str = ""
    trust_bundle: bytes = b""
    features: tuple[str, ...] = ()
    grace_ms: int = 0
    resumed: bool = False
    used: bool = False  # the session has moved, as ``Hello.use`` asked


class Use(NamedTuple):
    """Agent to server: move the session to this carrier. Sent on exactly one carrier at a time."""

    attempt: int
    have: int = 0  # newer than in hello, and exact


class Rejected(NamedTuple):
    """Server to agent, in place of ``Welcome``: the server refuses the attach."""

    reason: Reason
    detail: str
    retry_after_ms: int = 0


class Bye(NamedTuple):
    """The session ends for good. Numbered and acknowledged; no other frame ends a session."""

    reason: Reason
    detail: str = ""


class Draining(NamedTuple):
    """The sender opens and accepts no new streams; running streams may finish until the deadline."""

    deadline_ms: int


class Ping(NamedTuple):
    """Check that the peer's program is alive. The peer answers at once with the same token."""

    token: int
    round_trip_us: int = 0  # the sender's last measured round trip, so that both ends know it


class Pong(NamedTuple):
    """The answer to a ``Ping``, with its token."""

    token: int


class Open(NamedTuple):
    """Server to agent: dial the target. ``early_data`` is the stream's content at offset 0."""

    stream: int
    target: str  # a service name, host:port, or unix:/path
    user: str
    entrance: str
    credit: int  # bytes that the agent may send on this stream
    early_data: Payload = b""
    verb: str = ""  # reserved for policy: logs, exec, ...
    priority: int = 0
    target_tls: bool = False  # whether the agent speaks TLS to a target that is an https service


class Opened(NamedTuple):
    """Agent to server: the agent connected to the target. ``credit`` is absolute."""

    stream: int
    credit: int
    address: str = ""  # the address that the agent dialled, for the log


class RefusedFrame(NamedTuple):
    """Agent to server: the agent did not open the stream, and the target got no early data."""

    stream: int
    reason: Reason
    detail: str


class Data(NamedTuple):
    """Bytes of the sender's half, from ``offset`` on."""

    stream: int
    offset: int
    payload: Payload


class DataParts(NamedTuple):
    """``Data`` with a payload in pieces. The encoder writes one ``Data`` without joining them."""

    stream: int
    offset: int
    parts: list[Payload]

    def joined(self) -> Data:
        """Return the frame that the peer reads."""
        return Data(self.stream, self.offset, b"".join(self.parts))


class End(NamedTuple):
    """The sender's half has ``size`` bytes, and no byte follows."""

    stream: int
    size: int


class Reset(NamedTuple):
    """The sender resets its half (QUIC's RESET_STREAM); undelivered data may be dropped."""

    stream: int
    reason: Reason
    detail: str = ""


class Stop(NamedTuple):
    """The receiver stops receiving (QUIC's STOP_SENDING). The peer answers ``Reset`` unless it has ended."""

    stream: int
    reason: Reason


class Credit(NamedTuple):
    """The peer may send up to the absolute offset ``limit``."""

    stream: int
    limit: int


class Unknown(NamedTuple):
    """A frame of a later version, with its field number. The mux refuses it."""

    field: int


Frame: TypeAlias = (
    Hello
    | Welcome
    | Use
    | Rejected
    | Bye
    | Draining
    | Ping
    | Pong
    | Open
    | Opened
    | RefusedFrame
    | Data
    | DataParts
    | End
    | Reset
    | Stop
    | Credit
    | Unknown
)


class Packet(NamedTuple):
    """Frames that travel together.

    ``number`` 0: not retained, not acknowledged (pings, bare acks, the attach).
    """

    number: int
    ack: int  # the highest number received in order
    frames: Sequence[Frame]
    arrived: int = 0
    """The sender's clock when the newest packet that ``ack`` covers arrived, us mod 2**32; 0: no new one."""
    ack_immediately: bool = False  # the sender requests an immediate acknowledgement


class Malformed(NamedTuple):
    """Bytes that are no packet. A value and no exception, because gRPC swallows exceptions of a decoder."""

    detail: str
