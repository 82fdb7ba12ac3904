"""The two ends of a mux without a session. One end receives at once what the other sends."""

from __future__ import annotations

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.wire.frames import DataParts, Frame, Open

LIMITS = Limits(
    initial_credit=64,
    max_credit=256,
    credit_pool=2048,
    max_streams=6,
    early_data=16,
    max_send_memory=512,
    max_stream_queue=128,
)

REQUEST = Open(0, "localhost:22", "operator", "tcp", 0)


def as_read(frame: Frame) -> Frame:
    """Return the frame as the peer decodes it."""
    return frame.joined() if isinstance(frame, DataParts) else frame


def opened() -> tuple[Mux, Mux, StreamState, StreamState]:
    """Return the server's mux, the agent's mux, and an opened stream as each of them has it."""
    accepted: list[StreamState] = []
    server = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=True)
    agent = Mux(LIMITS, CreditPool(LIMITS.credit_pool), opener=False, on_open=accepted.append)
    near = server.open(REQUEST)
    move(server, agent)
    accepted[0].accept("")
    move(agent, server)
    return server, agent, near, accepted[0]


def move(source: Mux, sink: Mux) -> list[Frame]:
    """Move one packet from one mux to the other, and acknowledge it. Returns its frames."""
    frames, receipt = source.take(10_000, 10_000)
    frames = list(map(as_read, frames))
    for frame in frames:
        sink.receive(frame)
    source.acked(receipt)
    return frames
