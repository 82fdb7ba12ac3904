"""All bounds of sessions and streams. The table in DESIGN.md has the reasons."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session and its streams. Sizes in bytes, times in seconds."""

    max_packet_bytes: int = 1 * MIB
    """Content of one packet that this end builds."""
    max_message_bytes: int = 4 * MIB
    """Largest accepted gRPC message: above the largest packet, because later versions may send more."""
    max_frames_per_packet: int = 4096
    """Frames in one packet. Bounds the work of one read."""
    max_fields_per_packet: int = 24 * KIB
    """Fields of all frames of a packet: six a frame, as many as an ``open`` of this version has."""
    max_streams: int = 1024
    """Streams open at once in one session. Their initial credit, 64 MiB, is reserved."""
    max_streams_per_user: int = 256
    """Streams of one user: a quarter of ``max_streams``, and more while more than the user's own are free."""
    initial_credit: int = 64 * KIB
    """Bytes that a peer may send on a stream before any grant; reserved for each of ``max_streams``."""
    max_credit: int = 8 * MIB
    """Bytes of the largest window of one stream. Keeps loopback full; 160 MiB/s at a round trip of 50 ms."""
    credit_pool: int = 256 * MIB
    """Bytes by which all windows of one process together may exceed their initial credit."""
    early_data: int = 16 * KIB
    """Bytes of a stream that travel inside its ``open``: a request head."""
    max_send_memory: int = 32 * MIB
    """Bytes of one session sent and not acknowledged. At the bound data waits; control still leaves."""
    flight_limit: bool = True
    """Whether the link's rate bounds the bytes in flight; without it only memory does."""
    send_pool: int = 256 * MIB
    """Bytes of all sessions of one process sent and not acknowledged, sessions in grace included."""
    unconfirmed_seconds: float = 5.0
    """Time without an acknowledgement after which a short ``send_pool`` may reset a peer's streams."""
    max_stream_queue: int = 1 * MIB
    """Bytes of one stream that wait to be sent: one bulk read."""
    ack_every_bytes: int = 4 * MIB
    """Received bytes after which a bare acknowledgement leaves, if no packet carried it."""
    attach_timeout_seconds: float = 10.0
    """Time from the start of a carrier to the ``use`` that completes the attach."""
    hello_timeout_seconds: float = 2.0
    """Time from the start of a call to its hello, unless the call is the newest of its identity."""
    max_attach_bytes: int = 96 * KIB
    """Bytes that an agent may send before ``use``: more than a hello with all services and longest names."""
    max_attaches_per_identity: int = 4
    """Pending attaches of one identity. An agent has two, and a check beside it has one."""
    ping_interval_seconds: float = 15.0
    missed_pings: int = 2
    confirm_timeout_seconds: float = 120.0
    """A peer that acknowledges nothing for this time, though it answers pings, is at fault."""
    late_seconds: float = 1.0
    """A packet that is unacknowledged for this time, and for four round trips, is late."""
    grace_seconds: float = 120.0
    """How long a session is kept without a carrier; a modem reboots in 60 to 100 s. 0: not at all."""
    open_wait_seconds: float = 3.0
    """How long an open waits while the session has no carrier."""
    open_timeout_seconds: float = 30.0
    """Time from ``open`` to ``opened`` or ``refused``; longer than the agent's own dial deadline."""
    max_opens_per_second: int = 2000
    """Opens of a session that are reset before their answer: the budget against CVE-2023-44487."""
    max_detail_bytes: int = 512
    """Bytes of a ``detail``, a sentence for people; longer ones are cut."""
    max_text_bytes: int = 1024
    """Bytes of any other text or id in a frame; the longest valid name has 259 bytes."""
    max_services: int = 256
    """Services that one agent may announce."""
    max_features: int = 64
    """Optional features named in a hello or welcome."""
    max_trust_bundle_bytes: int = 256 * KIB
    """Bytes of roots in a welcome: a hundred certificates."""
    stall_seconds: float = 30.0
    """Time after which memory pressure may reset a full stalled stream, or the streams of a silent peer."""
