"""The three steps of an attach, for each side: hello, welcome (or rejected), use. No I/O, no clock.

They are apart from the session, because a session outlives its carriers and each carrier has to pass
them. Attempts race, so the welcome moves nothing: the agent says ``use`` on the one it chose, and the
server moves then. A probe never says it, and so takes nothing from anybody.

An agent whose old carrier is gone already says ``use`` within the hello, which spares the session a round
trip. It is the same choice, made earlier: it binds the agent from there on, so it makes it in one attempt
at a time. A server that does not know this answers as always, and waits for the ``use`` that then follows.
"""

from __future__ import annotations

from collections.abc import Callable

from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.ranges import why_out_of_range
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Frame, Hello, Rejected, Use, Welcome

VERSION = 1
_RETRY_MS = 300_000
"""For an agent that only a person can put right."""


class AttachRejected(Refused):
    """The server refused the attach; ``retry_after_seconds`` is its advice, 0 for none."""

    def __init__(self, rejected: Rejected) -> None:
        reason = Reason.PROTOCOL_ERROR if rejected.reason is Reason.DONE else rejected.reason
        super().__init__(reason, rejected.detail)
        self.retry_after_seconds = rejected.retry_after_ms / 1000


class ServerHandshake:
    """The server's part. ``offer`` decides on a hello: a welcome or a rejection.

    ``use`` is there once the agent chose this attempt, with its hello or after the welcome.
    """

    def __init__(self, offer: Callable[[Hello], Welcome | Rejected]) -> None:
        self._offer = offer
        self.hello: Hello | None = None
        self.welcome: Welcome | None = None
        self.use: Use | None = None

    def receive(self, frame: Frame) -> Frame | None:
        """Takes the next frame of the attach; returns the answer. Raises ``ProtocolError``."""
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
    """The agent's part. What comes after the welcome is the agent's choice."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None

    def receive(self, frame: Frame) -> None:
        """Takes the server's answer. Raises ``AttachRejected`` or ``ProtocolError``."""
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
