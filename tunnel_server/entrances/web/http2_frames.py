"""Budget of the frames that a browser may send over HTTP/2, counted before they are parsed. No I/O.

1. Each frame costs work, some cost an answer, and flow control bounds none of them but DATA. ``h2`` has no
   budget for frames. So this module reads the nine bytes before each frame, and closes the connection of a
   client that exceeds a budget, before ``h2`` handles the frames.
2. ``tunnel_core.http2.frame_budget`` is the budget of agents, which make one call on a connection. Browsers
   make hundreds of requests, cancel them, and give them priorities, so the numbers here are others.
3. A request costs no budget: the number of open streams bounds requests. A reset does, because a request that
   is reset at once does not stay open (rapid reset, CVE-2023-44487). A reset by this server costs the same
   if a malformed head or too many requests caused it (MadeYouReset, CVE-2025-8671).
4. The frames of one head are bounded in number and bytes before they are decoded (CONTINUATION floods). The
   decoder bounds the decoded head (HPACK bombs).
"""

from __future__ import annotations

from tunnel_core.http2.frame_budget import FloodError, Tokens

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
MAX_FRAME_BYTES = 16 * 1024
"""Largest frame that this server announces, the least that HTTP/2 allows."""
CONTROL_FRAMES, CONTROL_FRAMES_PER_SECOND = 1000, 50
"""Frames of one connection without data: SETTINGS, PING, PRIORITY, empty DATA, unknown ones. Some browsers
send one with each request."""
RESETS, RESETS_PER_SECOND = 300, 20
"""Requests of one connection that the browser resets, or makes this server reset. A page that is left
resets 100 at most."""
WINDOW_FRAMES, WINDOW_FRAMES_PER_SECOND = 2000, 200
"""WINDOW_UPDATE frames of one connection, beside two for each DATA frame that it received."""
HEAD_FRAMES = 16
"""Frames of one head beyond those that the longest head fills. Clients may send smaller frames."""

_DATA, _HEADERS, _RST_STREAM, _WINDOW_UPDATE, _CONTINUATION = 0x0, 0x1, 0x3, 0x8, 0x9
_END_STREAM, _END_HEADERS = 0x1, 0x4


class FrameMeter:
    """Reads the frames of one connection. ``max_head_bytes`` bounds a head as it is sent."""

    def __init__(self, max_head_bytes: int, now: float) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_head_frames = HEAD_FRAMES + max_head_bytes // MAX_FRAME_BYTES
        self._control = Tokens(CONTROL_FRAMES, CONTROL_FRAMES_PER_SECOND, now)
        self._resets = Tokens(RESETS, RESETS_PER_SECOND, now)
        self._windows = Tokens(WINDOW_FRAMES, WINDOW_FRAMES_PER_SECOND, now)
        self._to_skip = len(PREFACE)  # bytes before the next frame's header
        self._header = bytearray()
        self._head_frames, self._head_bytes = 0, 0

    def add(self, data: bytes, now: float) -> None:
        """Charge the frames that begin in ``data``. Raises ``FloodError``, whose text names the frames."""
        at, size = 0, len(data)
        while at < size:
            skipped = min(self._to_skip, size - at)
            self._to_skip -= skipped
            at += skipped
            missing = HEADER_BYTES - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) == HEADER_BYTES and not self._to_skip:
                header, self._header = self._header, bytearray()
                self._to_skip = int.from_bytes(header[:3], "big")
                self._charge(header[3], header[4], self._to_skip, now)

    def note_sent(self, frames: int) -> None:
        """Note that ``frames`` DATA frames were sent, for each of which a browser may open two windows."""
        windows = self._windows
        windows.left = min(windows.capacity, windows.left + 2 * frames)

    def charge_reset(self, now: float) -> None:
        """Charge a reset: one of the browser's, or one that the browser made this server send.

        Raises ``FloodError``.
        """
        if not self._resets.charge(1, now):
            raise FloodError("too many requests were reset")

    def _charge(self, kind: int, flags: int, size: int, now: float) -> None:
        if kind == _DATA:
            if size or flags & _END_STREAM:
                return
        elif kind in (_HEADERS, _CONTINUATION):
            self._charge_head(kind, size)
            return
        elif kind == _RST_STREAM:
            self.charge_reset(now)
            return
        elif kind == _WINDOW_UPDATE:
            if not self._windows.charge(1, now):
                raise FloodError("too many WINDOW_UPDATE frames")
            return
        if not self._control.charge(1, now):
            raise FloodError("too many frames without data")

    def _charge_head(self, kind: int, size: int) -> None:
        if kind == _HEADERS:
            self._head_frames, self._head_bytes = 0, 0
        self._head_frames += 1
        self._head_bytes += size
        if self._head_frames > self._max_head_frames or self._head_bytes > self._max_head_bytes:
            raise FloodError("a head has too many frames, or is too long")
