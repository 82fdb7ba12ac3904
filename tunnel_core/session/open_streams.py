"""The streams of one session, until their owners close them.

``OpenStreams`` refers to neither the session nor the mux. The mux holds callbacks into ``OpenStreams``, so a
reference back would be a cycle, and an ended session must leave none.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.pending_opens import PendingOpens
from tunnel_core.session.timer import Timer
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.wire.frames import Hello, Welcome


class OpenStreams:
    """Table of the streams that their owners use.

    The agent passes ``on_open``, which is called for each stream that the server opens and must not block or
    raise. A closed stream is removed from ``pending_opens`` as well.
    """

    def __init__(
        self,
        node: str,
        session_id: str,
        pending_opens: PendingOpens,
        on_open: Callable[[TunnelStream], None] | None,
    ) -> None:
        self.all: dict[int, TunnelStream] = {}
        """Oldest first."""
        self.draining = False
        """Whether new streams are refused."""
        self._node = node
        self._session_id = session_id
        self._pending_opens = pending_opens
        self._on_open = on_open
        self._serial = 0
        self._closed_in = self._closed_out = 0  # bytes of streams that are closed
        self._changed: trio.Event | None = None  # made by ``wait_change``

    def add(self, mux_stream: StreamState) -> TunnelStream:
        """Wrap a stream of the mux, add it to the table and return it."""
        self._serial += 1
        serial = self._serial

        def forget(stream: TunnelStream) -> None:
            del self.all[serial]
            self._pending_opens.forget(stream)
            self.note_change()
            self._closed_in += stream.bytes_in
            self._closed_out += stream.bytes_out

        stream = TunnelStream(mux_stream, self._session_id, forget)
        self.all[serial] = stream
        return stream

    def why_draining(self) -> Refused:
        """Return the refusal of a stream because this server drains, or because the agent does."""
        reason = Reason.SERVER_STOPPING if self.draining else Reason.AGENT_STOPPING
        return Refused(reason, f"node {self._node} takes no new streams: {reason.meaning}")

    def open(self, mux_stream: StreamState, on_opened: Callable[[], None] | None) -> TunnelStream:
        """Return a stream that this end opens; ``on_opened`` is called when the peer reached its target."""
        stream = self.add(mux_stream)

        def opened() -> None:
            self._pending_opens.forget(stream)
            # Its user may have left meanwhile.
            if on_opened is not None and mux_stream.reset_reason is None and mux_stream.refusal is None:
                on_opened()

        mux_stream.on_opened = opened
        return stream

    def opened_by_peer(self, mux_stream: StreamState) -> None:
        """Pass a stream that the server opened to ``on_open``, or refuse the stream."""
        if self._on_open is None or self.draining:
            detail = f"node {self._node} takes no new streams"
            mux_stream.refuse(Refused(Reason.AGENT_STOPPING, detail))
        else:
            self._on_open(self.add(mux_stream))

    @property
    def bytes_in(self) -> int:
        """Bytes received over all streams, closed ones too."""
        return self._closed_in + sum(stream.bytes_in for stream in self.all.values())

    @property
    def bytes_out(self) -> int:
        """Bytes sent over all streams, closed ones too."""
        return self._closed_out + sum(stream.bytes_out for stream in self.all.values())

    def note_change(self) -> None:
        """Wake ``wait_change``: a stream was closed, the mux is empty, or the session has ended."""
        if self._changed is not None:
            self._changed.set()

    async def wait_change(self) -> None:
        """Wait for the next ``note_change``."""
        if self._changed is None or self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()


def make_mux(
    hello: Hello,
    welcome: Welcome,
    limits: Limits,
    pool: CreditPool,
    send_pool: SendPool | None,
    streams: OpenStreams,
    timer: Timer,
    *,
    opener: bool,
) -> Mux:
    """Return the mux of a session, with the limits that the peer sent in hello or welcome."""
    mux = Mux(
        limits,
        pool,
        opener=opener,
        send_pool=send_pool,
        wake_later=timer.defer,
        on_open=streams.opened_by_peer,
        on_empty=streams.note_change,
    )
    mux.peer_initial_credit = hello.initial_credit if opener else welcome.initial_credit
    mux.peer_early_data = min(welcome.early_data_limit, mux.peer_initial_credit)
    mux.peer_max_streams = welcome.max_streams
    return mux
