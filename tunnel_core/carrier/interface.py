"""The interface between a session and its carrier. Knows no gRPC.

A carrier moves packets in order until it breaks. ``grpc_client.py`` dials carriers for agents, and
``http2/carrier.py`` is the server's side. The carrier in ``tests/support/fakes/memory_carrier.py`` moves
packets in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class CarrierFailed(Exception):  # noqa: N818 - named by what happened
    """Raised when no carrier could be made. ``detail`` has the cause, for people and logs only.

    ``timed_out``: the server sent no answer in time, not even a refusal or a reset.
    """

    def __init__(self, detail: str, *, timed_out: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.timed_out = timed_out


class CarrierPort(Protocol):
    """The user of a carrier: the attachment at first, and after ``Carrier.hand_over`` the session.

    Its methods never block and never raise.
    """

    def packet_received(self, data: bytes) -> None:
        """Take one encoded packet. The port decides whether to decode it."""

    def next_packet(self) -> bytes | None:
        """Return the next encoded packet, or None if there is none to send now.

        The carrier calls this whenever it can take a packet; after None it waits for :meth:`Carrier.wake`.
        """

    def carrier_lost(self, detail: str) -> None:
        """Note that the carrier is lost. Called once, and never after :meth:`Carrier.abandon`."""


ATTACH_PATH = "/qanat.v1.Tunnel/Attach"
"""The path of the one gRPC call, in its HTTP/2 head."""
DEAD_CONNECTION_MS = 20_000
"""The kernel drops a connection whose bytes stay unacknowledged for this time (TCP_USER_TIMEOUT)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end, as the transport verified it."""

    address: str  # "1.2.3.4:567" or "[::1]:567"; on the dialling side the server's name
    tls_version: str = ""  # "TLSv1.3"; empty on the dialling side, where gRPC does not expose it
    leaf_pem: bytes = b""  # the verified certificate; empty on the dialling side


class Carrier(ABC):
    """Moves packets between two ports. Used from the trio thread only."""

    __slots__ = ()

    peer: Peer

    @abstractmethod
    def start(self, port: CarrierPort) -> None:
        """Begin to move packets for ``port``. Call once."""

    @abstractmethod
    def hand_over(self, port: CarrierPort) -> None:
        """Move packets for ``port`` from now on. The previous port may call this from its own methods.

        Does nothing if the carrier was not started, is lost or was abandoned.
        """

    @abstractmethod
    def wake(self) -> None:
        """Note that the port may have a packet. Cheap while the carrier is busy sending."""

    def wake_for_data(self) -> None:
        """Like ``wake``, for data of a stream, which a user may wait for."""
        self.wake()

    def throttle(self, *, enabled: bool) -> None:  # noqa: B027 - not every carrier has a queue
        """Slow down bytes that the carrier already took, so that a second carrier gets through beside it."""

    def lost_local_address(self) -> bool:
        """Whether this machine has lost the address that the carrier sends from, so that no byte can move."""
        return False

    @abstractmethod
    def abandon(self) -> None:
        """Call the port no more, and release connection, queue and references soon. Idempotent."""


@dataclass(frozen=True, slots=True)
class DialSettings:
    """Settings to reach a server. ``server`` is ``host:port`` or ``[v6]:port``, the name that TLS verifies.

    ``addresses`` are the server's IP addresses in the resolver's order. They may be empty if the host is an
    address, or with a proxy. ``proxy_url`` is ``http://[user:password@]address:port`` of an HTTP CONNECT
    proxy, or empty for none. The caller looks up all names, because the carrier uses no resolver.
    ``connect_timeout_seconds`` covers TCP (all addresses), proxy and TLS.
    """

    server: str
    roots_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    proxy_url: str = field(default="", repr=False)
    connect_timeout_seconds: float = 10.0
    addresses: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The server's key and certificate chain, and the roots of the clients it accepts."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    roots_pem: bytes = field(repr=False)
