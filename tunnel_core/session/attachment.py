"""One carrier for all of its life: first it goes through the attach, then it moves a session's packets.

The attempt is the carrier's port until the last frame of the attach has left. From then on the session is, so
a packet of an attached session passes through nothing of the attach. What comes before is bounded: the server
decodes 96 KiB of an attach in all. An attempt that has settled without a session decodes nothing any more.

An attempt that a session has moved away from, or that lost a race, is abandoned: whatever still comes over
its carrier is dropped. So at no moment two carriers move the packets of one session.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

import trio

from tunnel_core.carrier.interface import Carrier, CarrierPort
from tunnel_core.limits import KIB, Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.handshake import AgentHandshake, ServerHandshake
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Frame, Malformed, Packet, Rejected, Use, Welcome

_log = logging.getLogger("tunnel_core.attempt")

_FAREWELL_SECONDS = 1.0
"""How long a rejection may take to leave."""
_HELLO_LOOKS = 2
"""Two waits of half the time each: the second one gives a program that was paused itself time to read."""
_TOO_EARLY = Malformed("more bytes came than an attach needs")
_MAX_WELCOME_BYTES = Limits().max_trust_bundle_bytes + 64 * KIB
"""Bytes that a server may send before the agent's ``use``: the welcome has the roots."""


class CarriedSession(CarrierPort, Protocol):
    """The session that an attempt carries, as far as the attempt needs it."""

    @property
    def received(self) -> int:
        """Number of the newest packet received in order; the agent sends it as ``have``."""

    def move_to(self, attempt: Attachment, have: int) -> None:
        """Continue over this attempt's carrier; the peer has received every packet up to ``have``."""


class Attachment:
    """A ``CarrierPort``. ``decide`` joins it to a session, or raises ``Refused``; it never blocks.

    It is called when the agent chose this attempt (server), or when the welcome is there (agent, where it
    may also do nothing, as who calls ``settle`` is told next).
    """

    def __init__(
        self,
        carrier: Carrier,
        steps: ServerHandshake | AgentHandshake,
        decide: Callable[[Attachment], None] | None = None,
    ) -> None:
        self.carrier = carrier
        self.steps = steps
        self.peer_address = carrier.peer.address
        self._failure: Refused | None = None
        self.answered_at = math.inf  # when the welcome was made
        self._decide = decide
        self.close_delayed = False
        """Whether its carrier outlives the next ``abandon``, and another one follows: so that the other end
        hears of the move before it hears of this end."""
        self._session: CarriedSession | None = None
        self._out: list[Frame] = [steps.hello] if isinstance(steps, AgentHandshake) else []
        self._bytes_left = (
            Limits().max_attach_bytes if isinstance(steps, ServerHandshake) else _MAX_WELCOME_BYTES
        )
        self._spoke = trio.Event()  # the other end has said something, or the attempt has failed
        self._saying_no = False
        self._kept = False
        self._settled = trio.Event()
        self._lost = trio.Event()

    async def settle(
        self, seconds: float, first_seconds: float = math.inf, is_spared: Callable[[], bool] = lambda: False
    ) -> None:
        """Takes the carrier through the attach: to the welcome (agent), to its use (server).

        Raises ``Refused``, ``ATTACH_TIMEOUT`` after ``seconds``, or if no packet came within
        ``first_seconds`` and the attempt is not spared then. Whoever fails, or is cancelled, leaves no
        carrier behind, but for one that ``decide`` kept; an agent that was welcomed must ``use`` or
        ``abandon`` it.
        """
        try:
            self.carrier.start(self)
            with trio.move_on_after(seconds):
                await self._wait_first(first_seconds, is_spared)
                await self._settled.wait()
            if not self._settled.is_set():
                self._fail(Refused(Reason.ATTACH_TIMEOUT, "the attach was not completed in time"))
            if self._saying_no:
                with trio.move_on_after(_FAREWELL_SECONDS):
                    await self._lost.wait()
        except BaseException:
            if not self._kept:
                self.abandon()
            raise
        if self._failure is not None:
            self.abandon()
            raise self._take_failure()

    def _take_failure(self) -> Refused:
        """Return the failure and forget it: its traceback will refer to the attempt."""
        failure, self._failure = self._failure, None
        assert failure is not None
        return failure

    async def _wait_first(self, seconds: float, is_spared: Callable[[], bool]) -> None:
        for _ in range(_HELLO_LOOKS):
            with trio.move_on_after(seconds / _HELLO_LOOKS):
                await self._spoke.wait()
                return
        if not is_spared():
            self._fail(Refused(Reason.ATTACH_TIMEOUT, f"no hello came within {seconds:g} s"))

    def refuse(self, refused: Refused, retry_after_ms: int) -> None:
        """Server, before ``settle``: reject the attach without waiting for a hello."""
        self._reject(Rejected(refused.reason, refused.detail, retry_after_ms))

    def displace(self, refused: Refused) -> None:
        """Server: end the attach at once, without a word to the agent. Does nothing once it is used."""
        if not self._settled.is_set():
            self._fail(refused)
        if self._session is None:
            self.abandon()

    def keep(self) -> None:
        """Agent: it is for later, whatever becomes of who waits for ``settle``."""
        self._kept = True

    def use(self, session: CarriedSession) -> None:
        """Agent: the one carrier of ``session`` from here on. Call it once, after the welcome.

        Raises ``Refused`` if the carrier was lost meanwhile; the session is as before then.
        """
        assert isinstance(self.steps, AgentHandshake) and self.steps.welcome is not None
        if self._lost.is_set():
            raise Refused(Reason.CARRIER_LOST, "the carrier broke before it was used")
        self._kept = True
        if not self.steps.welcome.used:
            self._out.append(Use(self.steps.hello.attempt, session.received))
        session.move_to(self, self.steps.welcome.have)

    def carry(self, session: CarriedSession) -> None:
        """What comes is for ``session``, and what goes is asked of it once the attach has sent its last."""
        self._session = session
        self._settled.set()
        self._maybe_hand_over()

    def _maybe_hand_over(self) -> None:
        if self._session is not None and not self._out:
            self.carrier.hand_over(self._session)

    def abandon(self) -> None:
        """Nothing moves over this carrier any more. Idempotent."""
        self._session = None
        self._lost.set()
        if self.close_delayed:
            self.close_delayed = False
            self.carrier.hand_over(self)
        else:
            self.carrier.abandon()

    @property
    def is_used(self) -> bool:
        """Whether it moves a session's packets."""
        return self._session is not None

    @property
    def welcome(self) -> Welcome:
        """What the server answered. Only after it did."""
        assert self.steps.welcome is not None
        return self.steps.welcome

    # What the carrier calls.

    def packet_received(self, data: bytes) -> None:
        self._spoke.set()
        if self._session is not None:
            self._session.packet_received(data)
        elif not self._settled.is_set():
            self._bytes_left -= len(data)
            self._attach_step(decode_packet(data) if self._bytes_left >= 0 else _TOO_EARLY)

    def next_packet(self) -> bytes | None:
        if not self._out:
            return None
        frame = self._out.pop(0)
        self._maybe_hand_over()
        return encode_packet(0, 0, [frame])  # frames of the attach stand alone

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
                raise ProtocolError(Reason.MALFORMED_PACKET, packet.why)
            for frame in packet.frames:
                self._take(frame)
        except Refused as refused:
            self._fail(refused)
        except ProtocolError as fault:
            self._fail(Refused(fault.reason, fault.detail))
        except Exception:
            _log.exception("the attach from %s failed", self.peer_address)
            self._fail(Refused(Reason.INTERNAL_ERROR))

    def _take(self, frame: Frame) -> None:
        if isinstance(self.steps, AgentHandshake):
            self.steps.receive(frame)
            if self._decide is not None:
                self._decide(self)  # now, as what comes next may be the session's
            self._settled.set()
            return
        answer = self.steps.receive(frame)
        if isinstance(answer, Rejected):
            self._reject(answer)
            return
        if answer is not None:
            self.answered_at = trio.current_time()
            self._say(answer)
        if self.steps.use is not None:
            self._join()

    def _join(self) -> None:
        assert self._decide is not None
        try:
            self._decide(self)
        except Refused as refused:
            self._reject(Rejected(refused.reason, refused.detail))

    def _reject(self, rejected: Rejected) -> None:
        self._saying_no = True
        self._say(rejected)
        self._fail(Refused(rejected.reason, rejected.detail))

    def _say(self, frame: Frame) -> None:
        self._out.append(frame)
        self.carrier.wake()

    def _fail(self, refused: Refused) -> None:
        if not self._settled.is_set():
            self._failure = refused.with_traceback(None)
            self._spoke.set()
            self._settled.set()
