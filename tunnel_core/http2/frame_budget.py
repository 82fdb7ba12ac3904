"""Budget of the frames that an HTTP/2 client may send without data. No I/O.

1. Each frame costs work, some frames cost an answer, and flow control bounds none of them. A client that
   sends PING, SETTINGS, WINDOW_UPDATE, RST_STREAM or CONTINUATION frames without pause takes all processor
   time.
2. A gRPC client needs few frames besides DATA: one SETTINGS and its acknowledgement, one HEADERS for the
   call, and WINDOW_UPDATE in proportion to the bytes it received. Each frame is charged to one of two
   budgets. The server closes the connection of a client that exceeds a budget.
3. ``control`` pays for all frames that are neither DATA nor WINDOW_UPDATE, and for empty DATA frames. It
   refills with time alone, because a client that caused answers could else earn budget with them.
4. ``flow`` pays for WINDOW_UPDATE, and for DATA frames too short for the prefix of a message. It also refills
   with the bytes moved, because an honest client sends these frames in proportion to them.
"""

from __future__ import annotations

from tunnel_core.limits import KIB

CONTROL_FRAMES, CONTROL_FRAMES_PER_SECOND = 64, 4
"""Frames of one connection that carry no data. An agent sends about five."""
CONTROL_BYTES, CONTROL_BYTES_PER_SECOND = 64 * KIB, 4 * KIB
"""Bytes of those frames."""
FLOW_FRAMES, FLOW_FRAMES_PER_SECOND = 1024, 64
"""WINDOW_UPDATE frames and DATA frames below 5 bytes. An agent sends at most one WINDOW_UPDATE for each
message."""
BYTES_PER_FLOW_FRAME = 16
"""Bytes moved for which one more of these frames is allowed. A client may send one or two for each message
that it received; a message has 30 bytes at least."""


class FloodError(Exception):
    """Raised when the client exceeds a budget; the text names the frames."""


class Tokens:
    """Tokens that refill with time, up to ``capacity``. ``now`` is in monotonic seconds."""

    __slots__ = ("_at", "_per_second", "capacity", "left")

    def __init__(self, capacity: float, per_second: float, now: float) -> None:
        self.left = self.capacity = capacity
        self._per_second = per_second
        self._at = now

    def charge(self, amount: float, now: float) -> bool:
        """Take ``amount`` tokens. Return False if there are too few."""
        self.left = min(self.capacity, self.left + (now - self._at) * self._per_second) - amount
        self._at = now
        return self.left >= 0


class FrameBudget:
    """The budgets of one connection. The charging methods raise ``FloodError``."""

    __slots__ = ("_control", "_control_bytes", "_flow")

    def __init__(self, now: float) -> None:
        self._control = Tokens(CONTROL_FRAMES, CONTROL_FRAMES_PER_SECOND, now)
        self._control_bytes = Tokens(CONTROL_BYTES, CONTROL_BYTES_PER_SECOND, now)
        self._flow = Tokens(FLOW_FRAMES, FLOW_FRAMES_PER_SECOND, now)

    def charge_control(self, size: int, now: float) -> None:
        """Charge a frame with ``size`` bytes of payload."""
        if not self._control.charge(1, now) or not self._control_bytes.charge(size, now):
            raise FloodError("too many frames without data, or too large ones")

    def charge_flow(self, now: float) -> None:
        """Charge a WINDOW_UPDATE frame, or a DATA frame too short for the prefix of a message."""
        if not self._flow.charge(1, now):
            raise FloodError("too many WINDOW_UPDATE or short DATA frames")

    def note_moved(self, size: int) -> None:
        """Note that ``size`` bytes of messages were sent or received."""
        flow = self._flow
        flow.left = min(flow.capacity, flow.left + size / BYTES_PER_FLOW_FRAME)
