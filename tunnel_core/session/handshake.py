"""The three steps of an attach, for each end: hello, welcome (or rejected), use. No I/O, no clock.

1. Every carrier of a session passes these steps, so they are apart from the session.
2. An agent may try several carriers at once. So the welcome does not move the session: the agent sends
   ``use`` on the carrier that it chose, and then the server moves. A probe never sends ``use``, so it takes
   no session away from another carrier.
3. An agent without a carrier sends ``use`` inside ``hello``, which saves one round trip. The choice binds the
   agent, so it makes this choice on one carrier at a time. A server that does not know ``use`` inside
   ``hello`` sends an ordinary welcome and waits for the separate ``use``.
"""

from __future__ import annotations

from collections.abc import Callable

from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.ranges import why_out_of_range
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Frame, Hello, Rejected, Use, Welcome

VERSION = 1
_RETRY_MS = 300_000
"""Retry time for an agent that works only after a person corrects its configuration."""


class AttachRejected(Refused):
    """Raised when the server rejected the attach. ``retry_after_seconds``: when to retry; 0 for no advice."""

    def __init__(self, rejected: Rejected) -> None:
        reason = Reason.PROTOCOL_ERROR if rejected.reason is Reason.DONE else rejected.reason
        super().__init__(reason, rejected.detail)
        self.retry_after_seconds = rejected.retry_after_ms / 1000


class ServerHandshake:
    """The server's part of an attach. ``offer`` answers a hello with a welcome or a rejection.

    ``use`` is None until the agent has chosen this carrier, inside its hello or after the welcome.
    """

    def __init__(self, offer: Callable[[Hello], Welcome | Rejected]) -> None:
        self._offer = offer
        self.hello: Hello | None = None
        self.welcome: Welcome | None = None
        self.use: Use | None = None

    def receive(self, frame: Frame) -> Frame | None:
        """Process the next frame of the attach and return the answer, if any.

        Raises ``ProtocolError`` for any frame other than the next step.
        """
        if isinstance(frame, Hello) and self.hello is None:
            self.hello = frame
            answer = _rejection(frame) or self._offer(frame)
            self.welcome = answer if isinstance(answer, Welcome) else None
            if self.welcome is not None and self.welcome.used:
                self.use = Use(frame.attempt, frame.have)
            return answer
        expected = self.hello and self.welcome and not self.use
        if isinstance(frame, Use) and expected and frame.attempt == self.hello.attempt:  # type: ignore[union-attr]
            self.use = frame
            return None
        raise ProtocolError(
            Reason.PROTOCOL_ERROR, f"a {type(frame).__name__} frame before the attach was complete"
        )


def _rejection(hello: Hello) -> Rejected | None:
    why = why_out_of_range(hello)
    return Rejected(Reason.NUMBER_OUT_OF_RANGE, why, _RETRY_MS) if why else None


class AgentHandshake:
    """The agent's part of an attach, up to the welcome."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None

    def receive(self, frame: Frame) -> None:
        """Process the server's answer to the hello.

        Raises ``AttachRejected`` if the server rejects the attach, and ``ProtocolError`` for another frame,
        for another version, or for a number out of range.
        """
        if isinstance(frame, Rejected):
            raise AttachRejected(frame)
        if not isinstance(frame, Welcome) or self.welcome is not None:
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"a {type(frame).__name__} frame in answer to hello")
        if frame.version != VERSION:
            raise ProtocolError(
                Reason.VERSION_MISMATCH, f"the server speaks version {frame.version}, not {VERSION}"
            )
        if why := why_out_of_range(frame):
            raise ProtocolError(Reason.NUMBER_OUT_OF_RANGE, why)
        self.welcome = frame
