"""One carrier from its attach to its end, as the attach first and then as the carrier of a session.

1. The attachment is the carrier's port until the last frame of the attach has left. Then the session becomes
   the port, so its packets pass through no code of the attach.
2. An attach is bounded: the server decodes at most ``max_attach_bytes`` of it. An attachment that has settled
   without a session decodes no further packet.
3. An attachment that lost a race, or that its session moved away from, is abandoned, and later packets over
   its carrier are dropped. So two carriers never move the packets of one session at the same time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

import trio

from tunnel_core.carrier.interface import Carrier, CarrierPort
from tunnel_core.kept_errors import without_frames
from tunnel_core.limits import KIB, Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.handshake import AgentHandshake, ServerHandshake
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Frame, Malformed, Packet, Rejected, Use, Welcome

_log = logging.getLogger("tunnel_core.attempt")

_REJECTION_SECONDS = 1.0
"""How long the server waits for a rejection to leave before it abandons the carrier."""
_HELLO_WAITS = 2
"""Number of waits for the hello, of equal length. If this process was paused, the second wait leaves time to
read a hello that has arrived already."""
_TOO_MANY_BYTES = Malformed("received more bytes than an attach needs")
_MAX_WELCOME_BYTES = Limits().max_trust_bundle_bytes + 64 * KIB
"""Bytes that a server may send before the agent's ``use``: the welcome has the roots."""


class CarriedSession(CarrierPort, Protocol):
    """The part of a session that its attachment uses."""

    @property
    def received(self) -> int:
        """Number of the newest packet received in order; the agent sends it as ``have``."""

    def move_to(self, attachment: Attachment, have: int) -> None:
        """Continue over the attachment's carrier; the peer has received every packet up to ``have``."""


class Attachment:
    """One carrier and its handshake; a ``CarrierPort``.

    ``decide`` joins the attachment to a session or raises ``Refused``; it must not block. The server calls
    it when the agent has sent ``use`` on this carrier. The agent calls it on the welcome; there ``decide``
    may do nothing and leave the decision to the caller of ``settle``.
    """

    def __init__(
        self,
        carrier: Carrier,
        handshake: ServerHandshake | AgentHandshake,
        decide: Callable[[Attachment], None] | None = None,
    ) -> None:
        self.carrier = carrier
        self.handshake = handshake
        self.peer_address = carrier.peer.address
        self._failure: Refused | None = None
        self.answered_at = math.inf
        """When the server made its welcome, in trio's clock."""
        self._decide = decide
        self.close_delayed = False
        """Whether the next ``abandon`` leaves the carrier open, until a second one closes it. So the peer
        learns of the move to the new carrier before this carrier closes."""
        self._session: CarriedSession | None = None
        self._pending: list[Frame] = [handshake.hello] if isinstance(handshake, AgentHandshake) else []
        self._bytes_left = (
            Limits().max_attach_bytes if isinstance(handshake, ServerHandshake) else _MAX_WELCOME_BYTES
        )
        self._received_any = trio.Event()  # the first packet has arrived, or the attach has failed
        self._is_rejecting = False
        self._is_kept = False
        self._settled = trio.Event()
        self._lost = trio.Event()

    async def settle(
        self, seconds: float, first_seconds: float = math.inf, is_spared: Callable[[], bool] = lambda: False
    ) -> None:
        """Run the attach: the agent waits for the welcome, the server for the agent's ``use``.

        Raises ``Refused``: with ``ATTACH_TIMEOUT`` after ``seconds``, or if no packet arrived within
        ``first_seconds`` and ``is_spared`` then returns False. A failure or cancellation abandons the
        carrier, unless ``decide`` has kept it. After the welcome the agent must call ``use`` or ``abandon``.
        """
        try:
            self.carrier.start(self)
            with trio.move_on_after(seconds):
                await self._wait_first(first_seconds, is_spared)
                await self._settled.wait()
            if not self._settled.is_set():
                self._fail(Refused(Reason.ATTACH_TIMEOUT, "the attach was not completed in time"))
            if self._is_rejecting:
                with trio.move_on_after(_REJECTION_SECONDS):
                    await self._lost.wait()
        except BaseException:
            if not self._is_kept:
                self.abandon()
            raise
        if self._failure is not None:
            self.abandon()
            raise self._take_failure()

    def _take_failure(self) -> Refused:
        """Return the failure and forget it, because its traceback will refer to this attachment (a cycle)."""
        failure, self._failure = self._failure, None
        assert failure is not None
        return failure

    async def _wait_first(self, seconds: float, is_spared: Callable[[], bool]) -> None:
        for _ in range(_HELLO_WAITS):
            with trio.move_on_after(seconds / _HELLO_WAITS):
                await self._received_any.wait()
                return
        if not is_spared():
            self._fail(Refused(Reason.ATTACH_TIMEOUT, f"no hello received within {seconds:g} s"))

    def refuse(self, refused: Refused, retry_after_ms: int) -> None:
        """Reject the attach without waiting for a hello. For the server, before ``settle``."""
        self._reject(Rejected(refused.reason, refused.detail, retry_after_ms))

    def displace(self, refused: Refused) -> None:
        """End the attach at once without ``rejected``; do nothing once a session uses it. For the server."""
        if not self._settled.is_set():
            self._fail(refused)
        if self._session is None:
            self.abandon()

    def keep(self) -> None:
        """Keep the carrier open even if ``settle`` is cancelled. For the agent, which may use it later."""
        self._is_kept = True

    def use(self, session: CarriedSession) -> None:
        """Move ``session`` to this carrier. For the agent, once, after the welcome.

        Raises ``Refused`` if the carrier was lost meanwhile; then the session has not changed.
        """
        assert isinstance(self.handshake, AgentHandshake) and self.handshake.welcome is not None
        if self._lost.is_set():
            raise Refused(Reason.CARRIER_LOST, "the carrier broke before it was used")
        self._is_kept = True
        if not self.handshake.welcome.used:
            self._pending.append(Use(self.handshake.hello.attempt, session.received))
        session.move_to(self, self.handshake.welcome.have)

    def carry(self, session: CarriedSession) -> None:
        """Pass received packets to ``session``, which also sends once the attach has sent its last frame."""
        self._session = session
        self._settled.set()
        self._maybe_hand_over()

    def _maybe_hand_over(self) -> None:
        if self._session is not None and not self._pending:
            self.carrier.hand_over(self._session)

    def abandon(self) -> None:
        """Close the carrier, later if ``close_delayed``, and drop what arrives over it. Idempotent."""
        self._session = None
        self._lost.set()
        if self.close_delayed:
            self.close_delayed = False
            self.carrier.hand_over(self)
        else:
            self.carrier.abandon()

    @property
    def is_used(self) -> bool:
        """Whether a session uses this carrier."""
        return self._session is not None

    @property
    def welcome(self) -> Welcome:
        """The server's welcome. Read it only after ``settle``, or in ``decide``."""
        assert self.handshake.welcome is not None
        return self.handshake.welcome

    # Calls of the carrier.

    def packet_received(self, data: bytes) -> None:
        self._received_any.set()
        if self._session is not None:
            self._session.packet_received(data)
        elif not self._settled.is_set():
            self._bytes_left -= len(data)
            self._attach_step(decode_packet(data) if self._bytes_left >= 0 else _TOO_MANY_BYTES)

    def next_packet(self) -> bytes | None:
        if not self._pending:
            return None
        frame = self._pending.pop(0)
        self._maybe_hand_over()
        return encode_packet(0, 0, [frame])  # each frame of the attach has a packet of its own

    def carrier_lost(self, detail: str) -> None:
        self._lost.set()
        if self._session is not None:
            self._session.carrier_lost(detail)
        else:
            self._fail(Refused(Reason.CARRIER_LOST, detail))

    # The attach.

    def _attach_step(self, packet: Packet | Malformed) -> None:
        try:
            if isinstance(packet, Malformed):
                raise ProtocolError(Reason.MALFORMED_PACKET, packet.detail)
            for frame in packet.frames:
                self._receive(frame)
        except Refused as refused:
            self._fail(refused)
        except ProtocolError as fault:
            self._fail(Refused(fault.reason, fault.detail))
        except Exception:
            _log.exception("the attach from %s failed", self.peer_address)
            self._fail(Refused(Reason.INTERNAL_ERROR))

    def _receive(self, frame: Frame) -> None:
        if isinstance(self.handshake, AgentHandshake):
            self.handshake.receive(frame)
            if self._decide is not None:
                self._decide(self)  # at once, because the next packet may be the session's
            self._settled.set()
            return
        answer = self.handshake.receive(frame)
        if isinstance(answer, Rejected):
            self._reject(answer)
            return
        if answer is not None:
            self.answered_at = trio.current_time()
            self._send(answer)
        if self.handshake.use is not None:
            self._join_session()

    def _join_session(self) -> None:
        assert self._decide is not None
        try:
            self._decide(self)
        except Refused as refused:
            self._reject(Rejected(refused.reason, refused.detail))

    def _reject(self, rejected: Rejected) -> None:
        self._is_rejecting = True
        self._send(rejected)
        self._fail(Refused(rejected.reason, rejected.detail))

    def _send(self, frame: Frame) -> None:
        self._pending.append(frame)
        self.carrier.wake()

    def _fail(self, refused: Refused) -> None:
        if not self._settled.is_set():
            self._failure = without_frames(refused)
            self._received_any.set()
            self._settled.set()
