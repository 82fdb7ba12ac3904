"""What arrives on a tunnelled stream goes on into a socket as it arrives, without a task of its own.

A task that only waits for the next piece costs a pass of the scheduler and a cold start for each, and
its memory for as long as the stream is open. While the kernel takes what comes there is nothing to
wait for, so the bytes are handed over inside the link's own step. Once the kernel takes no more, the
pump stops: waiting is for a task, and ``relay`` starts one.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel_core.limits import MIB
from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.tunnel_stream import TunnelStream

_LARGEST_READ = 1 * MIB


class Pump:
    """One direction, from ``source`` to ``sink``.

    ``on_moved`` is called with ``source`` and the length of each piece, before it goes.
    ``on_stop`` is called once, if a task has to look: the sink must be flushed, something broke
    (``error``), or the peer wants no more of the other direction after it ended this one. ``on_done`` may be
    set before ``start``; it is called once, at the end of the half.
    """

    def __init__(
        self,
        source: TunnelStream,
        sink: NowaitStream,
        on_moved: Callable[[TunnelStream, int], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.is_done = False  # the half has ended, and the sink was told
        self.needs_task = False  # it has stopped
        self.error: Exception | None = None
        self.on_done: Callable[[], None] | None = None
        self._source = source
        self._sink = sink
        self._on_moved = on_moved
        self._on_stop = on_stop
        self._waiter: trio.Event | None = None

    def start(self) -> None:
        """Moves what is there, and from now on what comes."""
        self._source.set_reader(self._take)

    def stop(self) -> None:
        """Moves nothing more. Idempotent."""
        self._source.set_reader(None)

    async def flush(self) -> None:
        """Waits until the sink took all that was moved. Raises as the sink's ``flush``."""
        await self._sink.flush()

    async def wait_done(self) -> None:
        """Waits for the end of the half; for ever if the pump stops before."""
        if not self.is_done:
            self._waiter = trio.Event()
            await self._waiter.wait()

    def _take(self) -> None:
        try:
            goes_on = self._move() if not self.is_done else not self._source.wants_no_more
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            # A kept traceback leads back here: a cycle of a hundred objects, with both sockets.
            self.error = error.with_traceback(None)
            goes_on = False
        if not goes_on:
            self.needs_task = True
            self.stop()
            self._on_stop()

    def _move(self) -> bool:
        """Moves all that is there; False when a task has to go on."""
        while data := self._source.receive_nowait(_LARGEST_READ):
            self._on_moved(self._source, len(data))
            if not self._sink.send_nowait(data):
                return False
        return data is None or self._finish()

    def _finish(self) -> bool:
        self.is_done = True
        if self._waiter is not None:
            self._waiter.set()
        if self.on_done is not None:
            self.on_done()
        return self._sink.send_eof_nowait()
