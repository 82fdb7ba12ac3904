"""Read one HTTP/2 connection: large messages straight into their memory, all else in pieces."""

from __future__ import annotations

from tunnel_core.http2.call import Http2Call
from tunnel_core.streams.tls import SocketTlsStream


def receive_once(
    stream: SocketTlsStream, call: Http2Call, size: int, now: float
) -> tuple[int | None, list[bytes]]:
    """Read about ``size`` bytes of ``stream`` for ``call``.

    Return the bytes read (0 at the end, None if there are none yet) and the messages that they complete.
    Raises as the stream and ``Http2Call.receive`` do.
    """
    space = call.space()
    if space is None:
        data = stream.receive_nowait(size)
        if data:
            return len(data), call.receive(data, now)
        return (None if data is None else 0), []
    with space:
        length = stream.receive_into_nowait(space, size)
    return length, call.filled(length) if length else []
