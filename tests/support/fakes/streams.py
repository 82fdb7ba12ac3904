"""What tests ask of a tunnelled stream."""

from __future__ import annotations

import trio

from tunnel_core.reasons import Reason
from tunnel_core.streams.tunnel_stream import TunnelStream


async def wait_reset(stream: TunnelStream) -> Reason:
    """Waits until the peer gave the stream up; returns why."""
    with trio.CancelScope() as scope, stream.cancel_on_peer_gone(scope):
        await trio.sleep_forever()
    return stream.ended_by or Reason.USER_LEFT
