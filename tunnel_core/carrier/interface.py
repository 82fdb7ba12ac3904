"""The seam under a session: what moves packets, in order, until it breaks. Knows no gRPC.

``grpc_client`` dials the real ones, and ``http2/carrier.py`` serves them. The carrier of
``tests/support/fakes/memory_carrier.py`` moves packets in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class CarrierFailed(Exception):  # noqa: N818 - named by what happened
    """No carrier came about. ``detail`` says why, for people and logs only.

    ``timed_out``: nothing was refused or broken; there was no answer.
    """

    def __init__(self, detail: str, *, timed_out: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.timed_out = timed_out


class CarrierPort(Protocol):
    """What a carrier moves packets for. Its methods never block and never raise.

    First that is the attach, and then, by ``Carrier.hand_over``, the session itself.
    """

    def packet_received(self, data: bytes) -> None:
        """Take one encoded packet. The port decides whether to decode it."""

    def next_packet(self) -> bytes | None:
        """Return the next encoded packet, or None if there is nothing to send now.

        Asked whenever the carrier can take one; after None not before :meth:`Carrier.wake`.
        """

    def carrier_lost(self, detail: str) -> None:
        """The carrier is no more. Called once, and not after :meth:`Carrier.abandon`."""


ATTACH_PATH = "/qanat.v1.Tunnel/Attach"
"""The path of the one gRPC call, in its HTTP/2 head."""
DEAD_CONNECTION_MS = 20_000
"""The kernel drops a connection whose bytes were not acknowledged for so long (TCP_USER_TIMEOUT)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end as its transport proved it."""

    address: str  # "1.2.3.4:567" or "[::1]:567"; what was dialled, on the dialling side
    tls_version: str = ""  # "TLSv1.3"; empty where gRPC does not tell, which is the dialling side
    leaf_pem: bytes = b""  # the certificate whose key was proven; empty on the dialling side


class Carrier(ABC):
    """Moves packets between two ports. Used from the trio thread only."""

    __slots__ = ()

    peer: Peer

    @abstractmethod
    def start(self, port: CarrierPort) -> None:
        """Begins to move packets. Once."""

    @abstractmethod
    def hand_over(self, port: CarrierPort) -> None:
        """Move packets for ``port`` from here on, also if this is called by the port of until now.

        Does nothing if the carrier was not started, is lost or was abandoned.
        """

    @abstractmethod
    def wake(self) -> None:
        """There may be something to send. Cheap while the carrier is busy sending."""

    def wake_for_data(self) -> None:
        """The same for bytes of a stream, which somebody may wait for."""
        self.wake()

    def throttle(self, *, held: bool) -> None:  # noqa: B027 - not every carrier has a queue
        """Whether what it took in leaves slowly, so that another carrier gets through beside it."""

    def lost_local_address(self) -> bool:
        """Whether this machine has lost the address that it goes out from, so that nothing moves any more."""
        return False

    @abstractmethod
    def abandon(self) -> None:
        """No more calls of the port; connection, queue and references are released soon. Idempotent."""


@dataclass(frozen=True, slots=True)
class DialSettings:
    """How to reach a server. ``server`` is ``host:port`` or ``[v6]:port``, the name that TLS verifies.

    ``addresses`` are the server's IP addresses in the order of the resolver; they may be empty if the host is
    an address, or a proxy leads there. ``proxy_url`` is ``http://[user:password@]address:port`` of an
    HTTP CONNECT proxy, or empty for none. Names are looked up by the caller: nothing below asks a resolver.
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
    """What a server proves itself with, and the roots of those it accepts."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    roots_pem: bytes = field(repr=False)
