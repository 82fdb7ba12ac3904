"""Errors of the protocol between the two ends. No I/O."""

from __future__ import annotations

from tunnel_core.reasons import Reason


class ProtocolError(Exception):
    """Raised when the peer violates the protocol. ``stream_only``: reset that stream, not the session."""

    def __init__(self, reason: Reason, detail: str, *, stream_only: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.stream_only = stream_only
