"""Move bytes from a tunnelled stream to a socket as they arrive, without a task.

A task that only waits costs a pass of the scheduler and cold caches for each piece. Its memory stays in use
as long as the stream is open. While the kernel accepts the bytes nothing has to wait. So the pump writes them
from the session's own step. When the kernel accepts no more, the pump stops, because waiting needs a task;
``relay`` starts one.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel_core.kept_errors import without_frames
from tunnel_core.limits import MIB
from tunnel_core.streams.nowait import NowaitStream
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
        self._waiter: trio.Event | None = None

    def start(self) -> None:
        """Move buffered bytes now, and later ones as they arrive."""
        self._source.set_reader(self._on_data)

    def stop(self) -> None:
        """Move no more bytes. Idempotent."""
        self._source.set_reader(None)

    async def flush(self) -> None:
        """Wait until the sink accepted all moved bytes. Raises as the sink's ``flush``."""
        await self._sink.flush()

    async def wait_done(self) -> None:
        """Wait for the end of the half; for ever if the pump stops before."""
        if not self.is_done:
            self._waiter = trio.Event()
            await self._waiter.wait()

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
        if self._waiter is not None:
            self._waiter.set()
        if self.on_done is not None:
            self.on_done()
        return self._sink.send_eof_nowait()
