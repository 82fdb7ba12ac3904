"""Errors of the protocol between the two ends. No I/O."""

from __future__ import annotations

from tunnel_core.reasons import Reason


class ProtocolError(Exception):
    """The peer broke a rule of the protocol. ``stream_only``: just that stream is reset."""

    def __init__(self, reason: Reason, detail: str, *, stream_only: bool = False) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.stream_only = stream_only
