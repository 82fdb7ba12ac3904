"""Texts and kinds of OpenSSL's errors."""

from __future__ import annotations

import ssl

import trio


class RecordFlood(trio.BrokenResourceError):
    """Raised when the peer sent too many TLS records without data."""


def reason_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's text of an error, without its source file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).lower().replace("_", " ")


def is_end_of_file(error: ssl.SSLError) -> bool:
    """Whether the peer closed the connection without ``close_notify``."""
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"
