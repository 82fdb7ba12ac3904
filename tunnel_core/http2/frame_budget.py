"""Budget of the frames that an HTTP/2 client may send without data. No I/O.

1. Each frame costs work, some frames cost an answer, and flow control bounds none of them. A client that
   sends PING, SETTINGS, WINDOW_UPDATE, RST_STREAM or CONTINUATION frames without pause takes all the time.
2. A gRPC client needs few frames beside DATA: one SETTINGS and its acknowledgement, one HEADERS for the call,
   and WINDOW_UPDATE in proportion to what it received. Each frame is charged to one of two budgets. A client
   that exceeds a budget is at fault, and its connection is cut.
3. ``control`` pays for all frames that are neither DATA nor WINDOW_UPDATE, and for empty DATA frames. It
   refills with time alone, because a client can cause answers and so could earn from them.
4. ``flow`` pays for WINDOW_UPDATE and for DATA frames too short to begin a message. It also refills with the
   bytes moved, because an honest client sends these frames in proportion to them.
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
    """The client exceeded a budget; the text names the frames."""


class _Tokens:
    """Refill with time, up to ``most``. ``now`` is steady seconds."""

    __slots__ = ("_at", "_left", "_most", "_per_second")

    def __init__(self, most: float, per_second: float, now: float) -> None:
        self._left = self._most = most
        self._per_second = per_second
        self._at = now

    def charge(self, amount: float, now: float) -> bool:
        """Return False if there are too few."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_second) - amount
        self._at = now
        return self._left >= 0

    def earn(self, amount: float) -> None:
        self._left = min(self._most, self._left + amount)


class FrameBudget:
    """The budgets of one connection. The charging methods raise ``FloodError``."""

    __slots__ = ("_control", "_control_bytes", "_flow")

    def __init__(self, now: float) -> None:
        self._control = _Tokens(CONTROL_FRAMES, CONTROL_FRAMES_PER_SECOND, now)
        self._control_bytes = _Tokens(CONTROL_BYTES, CONTROL_BYTES_PER_SECOND, now)
        self._flow = _Tokens(FLOW_FRAMES, FLOW_FRAMES_PER_SECOND, now)

    def charge_control(self, size: int, now: float) -> None:
        """Charge a frame with ``size`` bytes of payload."""
        if not self._control.charge(1, now) or not self._control_bytes.charge(size, now):
            raise FloodError("too many frames without data, or too large ones")

    def charge_flow(self, now: float) -> None:
        """Charge a WINDOW_UPDATE frame, or a DATA frame too short to begin a message."""
        if not self._flow.charge(1, now):
            raise FloodError("too many WINDOW_UPDATE or short DATA frames")

    def note_moved(self, size: int) -> None:
        """So many bytes of messages were sent or received."""
        self._flow.earn(size / BYTES_PER_FLOW_FRAME)
