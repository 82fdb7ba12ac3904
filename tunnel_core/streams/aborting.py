"""End a stream so that its peer sees a reset."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import trio

from tunnel_core.reasons import Reason
from tunnel_core.streams.tunnel_stream import TunnelStream


@runtime_checkable
class Abortable(Protocol):
    def abort(self) -> None: ...


def abort(stream: trio.abc.AsyncResource, reason: Reason, detail: str = "") -> None:
    """End ``stream`` so that its peer sees a reset, not an end. Never blocks.

    A stream of another kind, without ``abort``, is left to its owner to close.
    """
    if isinstance(stream, TunnelStream):
        stream.reset(reason, detail)
    elif isinstance(stream, Abortable):
        stream.abort()
    elif isinstance(stream, trio.SSLStream):
        abort(stream.transport_stream, reason, detail)
