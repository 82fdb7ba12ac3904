"""What moves in a session: packets of frames, as plain values. ``codec`` turns them into bytes and back.

Frames are named tuples because they are made and thrown away for every few bytes moved: cheap to
build, immutable, and comparable in tests. Every stream frame may arrive twice and must mean the
same the second time (offsets and credit are absolute), because resumption sends content again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from tunnel_core.reasons import Reason

Payload: TypeAlias = bytes | bytearray | memoryview
"""Bytes of a stream. A view may be kept as long as its owner wants; nobody writes to what it shows."""


class SessionSecret(bytes):
    """Whoever knows it and has the node's certificate may go on with the session. Never printed."""

    def __repr__(self) -> str:
        return "<secret>" if self else "<no secret>"


class Service(NamedTuple):
    """A target that the agent publishes under a name."""

    name: str
    protocol: str  # "http", "https" or "tcp"
    target: str = ""  # for people; the agent alone decides what it dials


class Hello(NamedTuple):
    """Agent to server, first frame of every carrier: who attaches, and what it already has."""

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
    initial_credit: int = 0  # what the server may send on a new stream before any grant
    metered: bool = False  # both ends go by the metered profile
    max_bytes_per_second: int = 0  # what the server may send; 0: no cap
    use: bool = False  # as if ``Use`` came with it; for an old session only


class Welcome(NamedTuple):
    """Server to agent: the attempt may be used, or is (``used``). Nothing of the session moves before."""

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
    """Agent to server: this carrier is now the one. Sent on exactly one carrier at a time."""

    attempt: int
    have: int = 0  # fresher than in hello, and exact


class Rejected(NamedTuple):
    """Server to agent, in place of ``Welcome``: the attach is refused, and why."""

    reason: Reason
    detail: str
    retry_after_ms: int = 0


class Bye(NamedTuple):
    """The session ends for good. Numbered and confirmed; nothing else ends a session."""

    reason: Reason
    detail: str = ""


class Draining(NamedTuple):
    """No new streams will be opened or accepted; running ones may finish until the deadline."""

    deadline_ms: int


class Ping(NamedTuple):
    """Proves that the peer's program is alive; answered at once with the same token."""

    token: int
    round_trip_us: int = 0  # the pinger's last measured round trip, so that both ends know it


class Pong(NamedTuple):
    token: int


class Open(NamedTuple):
    """Server to agent: dial the target. ``early_data`` is the stream's content at offset 0."""

    stream: int
    target: str  # a service name, host:port, or unix:/path
    user: str
    entrance: str
    credit: int  # what the agent may send on this stream
    early_data: Payload = b""
    verb: str = ""  # reserved for policy: logs, exec, ...
    priority: int = 0
    target_tls: bool = False  # whether the agent speaks TLS to a target that is an https service


class Opened(NamedTuple):
    """Agent to server: the dial succeeded; ``credit`` is absolute."""

    stream: int
    credit: int
    address: str = ""  # what was dialled, for the log


class RefusedFrame(NamedTuple):
    """Agent to server: the stream was not opened and nothing was done with its early data."""

    stream: int
    reason: Reason
    detail: str


class Data(NamedTuple):
    stream: int
    offset: int
    payload: Payload


class DataParts(NamedTuple):
    """``Data`` whose payload lies in several pieces: written as one ``Data`` without joining them first,
    and so never read."""

    stream: int
    offset: int
    parts: list[Payload]

    def joined(self) -> Data:
        """What the peer reads."""
        return Data(self.stream, self.offset, b"".join(self.parts))


class End(NamedTuple):
    """The sender's half is complete: no byte at or after ``size`` will follow."""

    stream: int
    size: int


class Reset(NamedTuple):
    """The sender gives up its half (QUIC's RESET_STREAM); undelivered data may be dropped."""

    stream: int
    reason: Reason
    detail: str = ""


class Stop(NamedTuple):
    """The receiver wants no more (QUIC's STOP_SENDING); the peer answers with ``Reset`` or has ended."""

    stream: int
    reason: Reason


class Credit(NamedTuple):
    """The peer may send up to the absolute offset ``limit``."""

    stream: int
    limit: int


class Unknown(NamedTuple):
    """A frame of a later version, by its field number: refused by whoever needs to know it."""

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
    """``number`` 0 is unnumbered: not retained, not confirmed (pings, bare acks, the attach steps)."""

    number: int
    ack: int  # the highest number received in order
    frames: Sequence[Frame]
    arrived: int = (
        0  # our clock, us mod 2**32, when the newest packet that ``ack`` covers came; 0: nothing new
    )
    ack_immediately: bool = False  # the sender wants to hear at once that this one came


class Malformed(NamedTuple):
    """Bytes that are no packet. A value, because gRPC swallows what a decoder raises."""

    why: str
