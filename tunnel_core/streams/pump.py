"""Move bytes between a tunnelled stream and a socket as they arrive, without a task.

A task that only waits costs a pass of the scheduler and cold caches for each piece. Its memory stays in use
as long as the stream is open. While the other side accepts the bytes nothing has to wait. So a ``Pump``
writes them to the socket from the session's own step. A ``Feed`` writes the socket's bytes to the tunnelled
stream when the socket is readable. When the other side accepts no more, they stop, because waiting needs a
task; ``relay`` has one.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel_core.kept_errors import without_frames
from tunnel_core.limits import MIB
from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.read_sizes import SMALLEST_READ
from tunnel_core.streams.tunnel_stream import TunnelStream

_MAX_READ = 1 * MIB


class Pump:
    """One direction, from ``source`` to ``sink``.

    ``on_moved`` is called with ``source`` and the length of each piece, before the pump sends it. ``on_stop``
    is called once, if a task must take over. Either the sink must be flushed, or one side broke (``error``),
    or the peer stopped receiving after it ended its own half. ``on_done`` may be set before ``start``; it is
    called once, at the end of the half.
    """

    def __init__(
        self,
        source: TunnelStream,
        sink: NowaitStream,
        on_moved: Callable[[TunnelStream, int], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.is_done = False  # the half has ended, and the sink got its end
        self.needs_task = False  # the pump has stopped before the end
        self.error: Exception | None = None
        self.on_done: Callable[[], None] | None = None
        self._source = source
        self._sink = sink
        self._on_moved = on_moved
        self._on_stop = on_stop

    def start(self) -> None:
        """Move buffered bytes now, and later ones as they arrive."""
        self._source.set_reader(self._on_data)

    def stop(self) -> None:
        """Move no more bytes. Idempotent."""
        self._source.set_reader(None)

    async def flush(self) -> None:
        """Wait until the sink accepted all moved bytes. Raises as the sink's ``flush``."""
        await self._sink.flush()

    def _on_data(self) -> None:
        try:
            continues = self._move() if not self.is_done else not self._source.peer_stopped_receiving
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.error = without_frames(error)
            continues = False
        if not continues:
            self.needs_task = True
            self.stop()
            self._on_stop()

    def _move(self) -> bool:
        """Move all buffered bytes. Return False if a task must take over."""
        while data := self._source.receive_nowait(_MAX_READ):
            self._on_moved(self._source, len(data))
            if not self._sink.send_nowait(data):
                return False
        return data is None or self._finish()

    def _finish(self) -> bool:
        self.is_done = True
        if self.on_done is not None:
            self.on_done()
        return self._sink.send_eof_nowait()


class Feed:
    """The other direction, from the socket ``source`` to ``sink``, as long as its reads are small.

    A full read may be the start of bulk, for which a task that reads more at once is cheaper.

    ``on_stop`` is called when a task must take over (``needs_task``): there is bulk, or the sink must be
    flushed, or one side broke (``take_error``). ``on_done`` is called once, at the end of the half.
    """

    def __init__(
        self,
        source: NowaitStream,
        sink: TunnelStream,
        on_moved: Callable[[NowaitStream, int], None],
        on_stop: Callable[[], None],
        on_done: Callable[[], None],
    ) -> None:
        self.needs_task = False
        self.is_done = False  # the half has ended, and the sink got its end
        self.can_resume = True  # the source can be watched
        self._source = source
        self._sink = sink
        self._on_moved = on_moved
        self._on_stop = on_stop
        self._on_done = on_done
        self._error: Exception | None = None

    def start(self) -> None:
        """Move the bytes that are there, and later ones as they arrive.

        The client's first bytes are often there, and travel with the open.
        """
        if self._move():
            self.resume()

    def resume(self) -> None:
        """Move bytes again, after a task has moved some. Without a watch of the source the task stays."""
        self.can_resume = self._source.watch(self._on_readable)
        self.needs_task = not self.can_resume

    def stop(self) -> None:
        """Move no more bytes. Idempotent."""
        self._source.watch(None)

    def end(self) -> None:
        """Note the end of the half, whose last bytes and end the sink has."""
        self.is_done, self.needs_task = True, False
        self._on_done()

    def take_error(self) -> Exception | None:
        """Return the error that broke a side, once."""
        error, self._error = self._error, None
        return error

    def _on_readable(self) -> None:
        if not self._move():
            self.stop()

    def _move(self) -> bool:
        """Move one read. Return False if the source needs no watch any more."""
        try:
            data = self._source.receive_nowait(SMALLEST_READ)
            if data is None:
                return True
            if data:
                self._on_moved(self._source, len(data))
                if self._sink.send_nowait(data) and len(data) < SMALLEST_READ:
                    return True
            else:
                self._sink.send_eof_nowait()
                self.end()
                return False
        except Exception as error:
            self._error = without_frames(error)
        self.needs_task = True
        self._on_stop()
        return False
