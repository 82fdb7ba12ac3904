"""Limits of a session and its streams. ``docs/limits.md`` lists them with all other limits."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session and its streams. Sizes in bytes, times in seconds."""

    max_packet_bytes: int = 1 * MIB
    """Bytes of content in one packet that this program builds. The price is per message; larger packets did
    not help on loopback."""
    max_message_bytes: int = 4 * MIB
    """Bytes of one gRPC message that this program accepts. Above the largest packet, because later versions
    may send more."""
    max_frames_per_packet: int = 4096
    """Frames in one packet. Bounds the work of one read."""
    max_fields_per_packet: int = 24 * KIB
    """Fields of all frames of one packet: six a frame, as many as our ``open`` has. 4 MiB of them cost some
    20 ms of the event loop."""
    max_streams: int = 1024
    """Streams open at once in one session. Their initial credit, 64 MiB, is reserved."""
    max_streams_per_user: int = 256
    """Streams of one user in one session: a quarter of all. A user may have more while more than the user's
    own number are free, so a lone user may have half. Closed streams count until the node acknowledges
    them."""
    initial_credit: int = 64 * KIB
    """Bytes that a peer may send on a stream before any grant: one round trip of a slow link. Reserved for
    each of ``max_streams``."""
    max_credit: int = 8 * MIB
    """Bytes of the largest window of one stream. Keeps loopback full; 160 MiB/s at a round trip of 50 ms."""
    credit_pool: int = 256 * MIB
    """Bytes by which all windows of one process may grow beyond their initial credit: the memory that stalled
    readers can hold. On a machine or in a cgroup with less than 2 GiB it is an eighth of that memory."""
    early_data: int = 16 * KIB
    """Bytes of a stream that travel inside its ``open``: a request head."""
    max_send_memory: int = 32 * MIB
    """Bytes of one session that were sent and are not acknowledged."""
    flight_limit: bool = True
    """Whether the bytes in flight are bounded by what the link carries. Without it memory alone bounds
    them."""
    send_pool: int = 256 * MIB
    """Bytes that were sent and are not acknowledged, over all sessions of one process, those in grace
    included. With less memory it is as small as ``credit_pool``."""
    unacked_seconds: float = 5.0
    """Time in which a peer that sends acknowledges nothing, before a short ``send_pool`` may reset its
    streams."""
    max_stream_queue: int = 1 * MIB
    """Bytes of one stream that wait to be sent: one bulk read."""
    ack_every_bytes: int = 4 * MIB
    """Received bytes after which an acknowledgement is sent alone if no other packet carries it."""
    attach_timeout_seconds: float = 10.0
    """Time from the start of a carrier to the ``use`` that completes the attach."""
    hello_timeout_seconds: float = 2.0
    """Time from the start of a call to its hello. The newest call of an identity has the time of the attach,
    because on an overloaded machine the hello is late."""
    max_attach_bytes: int = 96 * KIB
    """Bytes that an agent may send before its ``use``. A hello with 256 services and the longest names has 83
    KiB."""
    max_attaches_per_identity: int = 4
    """Attaches of one identity that are under way. An agent has two, and a check beside it one."""
    ping_interval_seconds: float = 15.0
    missed_pings: int = 2
    ack_timeout_seconds: float = 120.0
    """Time in which a peer answers pings but acknowledges nothing. Then the peer is at fault, not the
    link."""
    late_seconds: float = 1.0
    """Age from which a packet without acknowledgement is late; four round trips if those are longer."""
    grace_seconds: float = 120.0
    """Time for which a session is kept without a carrier, because a modem reboots in 60 to 100 s. 0: not at
    all."""
    open_wait_seconds: float = 3.0
    """Time for which an open waits for a lost link."""
    open_timeout_seconds: float = 30.0
    """Time from ``open`` to ``opened`` or ``refused``, above the agent's own dial deadline. kube-apiserver
    has no time-out for it, so the server has one."""
    max_opens_per_second: int = 2000
    """Opens a second, per session, that are reset before they are answered: each is a dial
    (CVE-2023-44487)."""
    max_detail_bytes: int = 512
    """Bytes of a sentence for people on the wire."""
    max_text_bytes: int = 1024
    """Bytes of any other text or id in a frame. The longest valid name has 259."""
    max_services: int = 256
    """Services that one agent may announce."""
    max_features: int = 64
    """Optional abilities that a hello or welcome names."""
    max_trust_bundle_bytes: int = 256 * KIB
    """Bytes of the roots in a welcome: a hundred certificates."""
    stall_seconds: float = 30.0
    """Time for which a full stream stands still, or a peer is silent, before memory pressure may reset its
    streams."""
