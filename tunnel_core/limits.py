"""Every bound of the link in one place. DESIGN.md's table gives the reasons."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session and its streams. Sizes in bytes, times in seconds."""

    max_packet_bytes: int = 1 * MIB
    """Content of one packet that we build."""
    max_message_bytes: int = 4 * MIB
    """A gRPC message that we accept: above the largest packet, as later versions may send more."""
    max_frames_per_packet: int = 4096
    max_fields_per_packet: int = 24 * KIB
    """Fields of all frames of a packet: six a frame, as many as our ``open`` has."""
    max_streams: int = 1024
    """Streams open at once in one session."""
    max_streams_per_user: int = 256
    """A quarter of them for one user; more while more than the user's own number are free."""
    initial_credit: int = 64 * KIB
    """What a peer may send on a stream before any grant; reserved for each of ``max_streams``."""
    max_credit: int = 8 * MIB
    """Largest window of one stream: 8 MiB kept the pipe full on loopback."""
    credit_pool: int = 256 * MIB
    """What all windows of one process may grow beyond their initial credit, together."""
    early_data: int = 16 * KIB
    """Bytes of a stream that travel inside its ``open``."""
    max_send_memory: int = 32 * MIB
    """Bytes of one session that were sent and not yet confirmed; then data waits and control fits."""
    flight_limit: bool = True
    """Whether what is under way is bounded by what the link carries; without it by memory alone."""
    send_pool: int = 256 * MIB
    """The same over all sessions of one process, those in grace included."""
    unconfirmed_seconds: float = 5.0
    """How long a peer that sends must confirm nothing before a short ``send_pool`` may reset its streams."""
    max_stream_queue: int = 1 * MIB
    """Bytes of one stream that wait to be sent before ``send_all`` blocks."""
    ack_every_bytes: int = 4 * MIB
    """Received bytes after which a bare confirmation is sent if nothing else carries it."""
    attach_timeout_seconds: float = 10.0
    """From the start of a carrier to the ``use`` that completes the attach."""
    hello_timeout_seconds: float = 2.0
    """From the start of a call to its hello, unless it is the newest of its identity."""
    max_attach_bytes: int = 96 * KIB
    """What an agent may send before its ``use``: more than a hello with all services and longest names."""
    max_attaches_per_identity: int = 4
    """Attaches under way of one identity. An agent has two, and a check beside it one."""
    ping_interval_seconds: float = 15.0
    missed_pings: int = 2
    confirm_timeout_seconds: float = 120.0
    """A peer that confirms nothing for so long, though it answers pings, is at fault."""
    late_seconds: float = 1.0
    """What is unconfirmed for so long, and for four round trips, is late."""
    grace_seconds: float = 120.0
    """How long a session is kept without a carrier: a modem reboots in 60 to 100 s. 0: not at all."""
    open_wait_seconds: float = 3.0
    """How long an open waits for a link that is lost."""
    open_timeout_seconds: float = 30.0
    """From ``open`` to ``opened`` or ``refused``; above the agent's own dial deadline."""
    max_opens_per_second: int = 2000
    """Opens that are reset before they were answered, per session: the budget of CVE-2023-44487."""
    max_detail_bytes: int = 512
    """A human sentence on the wire; longer ones are cut."""
    max_text_bytes: int = 1024
    """Any other text or id in a frame; the longest valid name has 259 bytes."""
    max_services: int = 256
    """Services one agent may announce."""
    max_features: int = 64
    """Optional abilities named in a hello or welcome."""
    max_trust_bundle_bytes: int = 256 * KIB
    """Roots in a welcome: a hundred certificates."""
    stall_seconds: float = 30.0
    """Memory pressure may reset a full stream that stands still, or those of a silent peer, after so long."""
