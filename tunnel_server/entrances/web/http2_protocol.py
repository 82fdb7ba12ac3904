"""Set-up of ``h2`` for the connection of a browser. No I/O."""

from __future__ import annotations

import base64
import secrets
from dataclasses import replace

import h2.config
import h2.connection
import h2.settings

from tunnel_core.limits import KIB, MIB
from tunnel_server.entrances.web.http2_browser import INITIAL_WINDOW
from tunnel_server.entrances.web.http2_frames import MAX_FRAME_BYTES
from tunnel_server.reverse_proxy.messages import BrowserRequest

MAX_STREAMS = 100
"""Requests of one connection at once, the least that RFC 9113 recommends."""
CONNECTION_WINDOW = 1 * MIB
"""Bytes of all requests of one connection that may be under way."""
_DEFAULT_WINDOW = 64 * KIB - 1  # RFC 9113 section 6.9.2


def make_protocol(max_decoded: int) -> h2.connection.H2Connection:
    """Return the protocol of one connection.

    ``max_decoded`` bounds a decoded head in bytes, with 32 more for each header.
    """
    config = h2.config.H2Configuration(
        client_side=False,
        header_encoding=None,
        validate_inbound_headers=False,  # http2_heads checks them, per head and not per character
        normalize_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    made = h2.connection.H2Connection(config)
    codes = h2.settings.SettingCodes
    made.local_settings = h2.settings.Settings(
        client=False,
        initial_values={
            codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            codes.MAX_HEADER_LIST_SIZE: max_decoded,
            codes.INITIAL_WINDOW_SIZE: INITIAL_WINDOW,
            codes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            codes.ENABLE_CONNECT_PROTOCOL: 1,
        },
    )
    made.decoder.max_header_list_size = max_decoded
    return made


def start_protocol(protocol: h2.connection.H2Connection) -> None:
    """Queue the settings, and open the window of the connection."""
    protocol.initiate_connection()
    protocol.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)


def with_key(request: BrowserRequest) -> BrowserRequest:
    """Return a request for a WebSocket with the key that HTTP/1.1 needs and RFC 8441 leaves out."""
    if request.upgrade.lower() != b"websocket" or request.values(b"sec-websocket-key"):
        return request
    key = base64.b64encode(secrets.token_bytes(16))
    return replace(request, headers=[*request.headers, (b"sec-websocket-key", key)])
