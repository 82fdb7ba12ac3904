"""End a connection whose peer may still be sending, so that the last answer arrives.

A close with unread input makes the kernel send a reset (RFC 2525, section 2.17). A client in the middle of an
upload then sees a broken connection instead of the answer. nginx calls the remedy ``lingering_close``:

1. End our half with a FIN, or with ``close_notify`` inside TLS. So the peer sees that the answer is complete.
2. Receive and discard, until the peer ends its half too or a bound is reached.
3. The caller closes.

The longest silence is nginx's (5 s). The total is longer, because a client may have 100 MB in flight over a
line of 20 Mbit/s. At most ``MAX_LINGERING`` connections of a process get the long bounds; all others get the
short ones. The connection counts against its listener meanwhile.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import trio

from tunnel_core.limits import KIB, MIB

MAX_LINGERING = 128
"""Connections of a process with the long bounds at once."""
_READ_BYTES = 256 * KIB


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of what a peer may go on sending: total time, time without a byte, and bytes."""

    seconds: float
    silence_seconds: float
    max_bytes: int


LONG = Bounds(seconds=60.0, silence_seconds=5.0, max_bytes=512 * MIB)
"""For a peer that may be in the middle of an upload: in all, silence, and bytes that are discarded behind the
last answer. A close over unread input resets the connection, and the answer is lost. nginx: 30 s, 5 s."""
SHORT = Bounds(seconds=1.0, silence_seconds=1.0, max_bytes=256 * KIB)
"""For a peer that has sent all that it announced: in all, silence, and bytes."""


class _Count:
    """Connections of this process that linger long."""

    lingering = 0


async def linger(stream: trio.abc.Stream, *, is_sending: bool) -> None:
    """End our half of ``stream`` and discard what the peer still sends. The caller closes ``stream``.

    ``is_sending``: the peer may have more to send than a socket's buffers hold. Raises nothing when the peer
    breaks the connection. Cancellation may leave our half not ended, and input unread.
    """
    if not is_sending or _Count.lingering >= MAX_LINGERING:
        await _linger(stream, SHORT)
        return
    _Count.lingering += 1
    try:
        await _linger(stream, LONG)
    finally:
        _Count.lingering -= 1


async def _linger(stream: trio.abc.Stream, bounds: Bounds) -> None:
    ends, left = trio.current_time() + bounds.seconds, bounds.max_bytes
    with contextlib.suppress(trio.BrokenResourceError), trio.CancelScope() as scope:
        scope.deadline = min(ends, trio.current_time() + bounds.silence_seconds)
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        while left > 0 and (data := await stream.receive_some(_READ_BYTES)):
            left -= len(data)
            scope.deadline = min(ends, trio.current_time() + bounds.silence_seconds)
