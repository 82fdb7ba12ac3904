"""Waits on tunnelled streams, for tests."""

from __future__ import annotations

import trio

from tunnel_core.reasons import Reason
from tunnel_core.streams.tunnel_stream import TunnelStream


async def wait_reset(stream: TunnelStream) -> Reason:
    """Wait until the peer reset the stream, and return the reason."""
    with trio.CancelScope() as scope, stream.cancel_on_peer_gone(scope):
        await trio.sleep_forever()
    return stream.ended_by or Reason.USER_LEFT
