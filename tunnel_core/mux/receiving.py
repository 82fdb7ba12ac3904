"""Apply the peer's frames to their streams. No I/O, no clock.

Each handler takes the stream and the frame. It raises ``ProtocolError`` for a frame that the protocol
forbids; with ``stream_only`` the mux resets only that stream. A frame that arrives a second time changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunnel_core.mux.stream_state import END, StreamState
from tunnel_core.reasons import OF_A_STREAM, Reason, Refused
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Credit, Data, End, Opened, RefusedFrame, Reset, Stop


def _receive_data(stream: StreamState, frame: Data) -> None:
    if stream.discarding:
        stream.recv.skip(frame.offset + len(frame.payload))
    elif stream.recv.add(frame.offset, frame.payload):
        stream.on_readable()


def _receive_end(stream: StreamState, frame: End) -> None:
    if stream.discarding:
        stream.recv.size = frame.size
    else:
        stream.recv.end(frame.size)
    stream.on_readable()
    stream.mux.maybe_forget(stream)


def _receive_reset(stream: StreamState, frame: Reset) -> None:
    if stream.recv.size is None:
        stream.recv.size = stream.recv.received
        stream.recv.drop()
        stream.recv_reset = stream.discarding = True
        _break(stream, _accepted_reason(stream, frame.reason, Reason.TARGET_RESET), frame.detail)
    stream.mux.maybe_forget(stream)


def _receive_stop(stream: StreamState, frame: Stop) -> None:
    if not stream.send_reset and not stream.emitted & END:
        _break(stream, _accepted_reason(stream, frame.reason, Reason.TARGET_RESET), "")
        stream.reset_sending()


def _break(stream: StreamState, reason: Reason, detail: str) -> None:
    if stream.reset_reason is None:
        stream.reset_reason, stream.reset_detail = reason, detail
        if not stream.opened and not stream.mux.is_opener and stream.refusal is None:
            stream.mux.opens_cancelled += 1
    stream.notify_owner()


def _receive_credit(stream: StreamState, frame: Credit) -> None:
    if frame.limit > stream.send.limit:
        stream.send.limit = frame.limit
        stream.mux.list_stream(stream)
        if stream.awaits_room:
            stream.on_writable()


def _receive_opened(stream: StreamState, frame: Opened) -> None:
    if not stream.mux.is_opener:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "an answer to an open, which this end never sends")
    if not stream.opened:
        stream.opened, stream.address = True, frame.address
        stream.on_opened()
        _receive_credit(stream, Credit(frame.stream, frame.credit))
        stream.on_writable()


def _receive_refused(stream: StreamState, frame: RefusedFrame) -> None:
    if not stream.mux.is_opener or stream.opened:
        raise ProtocolError(Reason.PROTOCOL_ERROR, f"a refusal of stream {frame.stream}, which is open")
    reason, detail = _accepted_reason(stream, frame.reason, Reason.DIAL_FAILED), frame.detail
    if reason is not frame.reason:
        word = frame.reason.word
        detail = f"the agent refused the stream with the reason {word}, which an agent may not send"
    stream.refusal = Refused(reason, detail)
    stream.discarding = stream.send_reset = stream.recv_reset = True
    stream.mux.drop_sending(stream)
    stream.recv.drop()
    stream.notify_owner()
    stream.mux.maybe_forget(stream)


def _accepted_reason(stream: StreamState, reason: Reason, otherwise: Reason) -> Reason:
    """Return the peer's reason, or ``otherwise`` if the peer is an agent that may not give it.

    Answers to users, logs and the audit follow from reasons. So an agent may not send ``done`` as a refusal,
    nor a reason that only the server's own access decision may have.
    """
    return reason if reason in OF_A_STREAM or not stream.mux.is_opener else otherwise


HANDLERS: dict[type, Callable[[StreamState, Any], None]] = {
    Data: _receive_data,
    Credit: _receive_credit,
    End: _receive_end,
    Opened: _receive_opened,
    RefusedFrame: _receive_refused,
    Reset: _receive_reset,
    Stop: _receive_stop,
}
"""Handlers by type of frame. ``Mux`` handles ``Open`` itself, because it has no stream yet."""
