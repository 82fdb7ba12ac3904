"""The agents' listener: TLS with a client certificate, HTTP/2, and the carrier server on top.

A connection counts as unauthenticated until its first message, so the bounds of ``admission`` also hold for
clients that only complete the handshake. The server aborts a connection that floods, and then refuses its
certificate for ``REFUSED_SECONDS``. Each aborted or refused connection keeps its place among the
unauthenticated ones for ``PLACE_HELD_SECONDS``, so that a flooding source gets few handshakes.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections import OrderedDict
from collections.abc import Iterator

import trio

from tunnel_core.carrier.interface import DEAD_CONNECTION_MS, Peer
from tunnel_core.http2.carrier import CarrierServer
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import SocketTlsStream
from tunnel_server.listeners.listener import AcceptedConnection, Reporter

ENTRANCE = "agents"
ALPN = "h2"
REFUSED_SECONDS = 60.0
"""Time for which the certificate of a connection that flooded is refused. Each handshake costs a
millisecond."""
PLACE_HELD_SECONDS = 5.0
"""Time for which a connection that was aborted or refused for a flood keeps its place."""
MAX_REFUSED = 1024
"""Certificates that are refused at once."""
MAX_CONNECTIONS_PER_CERTIFICATE = 8
"""Connections of one certificate. A session and its attempts need four."""


class AgentsEntrance:
    """Pass each connection to ``carriers``, and report refused connections to ``reporter``."""

    def __init__(self, carriers: CarrierServer, reporter: Reporter) -> None:
        self._carriers = carriers
        self._reporter = reporter
        self._refused_until: OrderedDict[bytes, float] = OrderedDict()  # by certificate
        self._open: dict[bytes, OrderedDict[trio.CancelScope, None]] = {}  # by certificate

    async def serve(self, accepted: AcceptedConnection) -> None:
        """Serve one connection to its end. The TLS handshake is complete."""
        stream = accepted.stream
        assert isinstance(stream, SocketTlsStream)
        peer = Peer(accepted.address, stream.version(), stream.peer_certificate())
        certificate = hashlib.sha256(peer.leaf_pem).digest()
        try:
            if stream.alpn() != ALPN:
                raise Refused(Reason.HANDSHAKE_FAILED, f"the client does not offer {ALPN} by ALPN")
            self._require_no_flood(certificate)
            _drop_dead_peer(stream)
            with self._place(certificate):
                await self._carriers.serve(stream, peer, accepted.ticket.authenticated)
        except Refused as refused:
            stream.abort()
            self._reporter.refused(ENTRANCE, accepted.source, refused)
            if refused.reason is Reason.FRAME_FLOOD:
                self._note_flood(certificate)
                await trio.sleep(PLACE_HELD_SECONDS)
        else:
            await stream.aclose()

    def _require_no_flood(self, certificate: bytes) -> None:
        left = self._refused_until.get(certificate, 0.0) - trio.current_time()
        if left > 0:
            detail = (
                f"a connection with this certificate flooded; the server accepts it again in {left:.0f} s"
            )
            raise Refused(Reason.FRAME_FLOOD, detail)

    def _note_flood(self, certificate: bytes) -> None:
        """Start the time of refusal. Attempts during this time do not prolong it."""
        now = trio.current_time()
        if self._refused_until.get(certificate, 0.0) <= now:
            self._refused_until[certificate] = now + REFUSED_SECONDS
            self._refused_until.move_to_end(certificate)
            if len(self._refused_until) > MAX_REFUSED:
                self._refused_until.popitem(last=False)

    @contextlib.contextmanager
    def _place(self, certificate: bytes) -> Iterator[None]:
        """Count the connection. The block is cancelled when too many newer connections arrive."""
        places = self._open.setdefault(certificate, OrderedDict())
        if len(places) >= MAX_CONNECTIONS_PER_CERTIFICATE:
            places.popitem(last=False)[0].cancel()
        with trio.CancelScope() as scope:
            places[scope] = None
            try:
                yield
            finally:
                places.pop(scope, None)
                if not places:
                    self._open.pop(certificate, None)


def _drop_dead_peer(stream: SocketTlsStream) -> None:
    """Let the kernel drop the connection if sent bytes stay unacknowledged for ``DEAD_CONNECTION_MS``."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        stream.set_tcp_option(socket.TCP_USER_TIMEOUT, DEAD_CONNECTION_MS)
