"""Set-up of HTTP/2: the settings that a browser sees, and the key of a translated WebSocket."""

from __future__ import annotations

import base64
from dataclasses import replace

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from tunnel_server.entrances.web.http2_browser import INITIAL_WINDOW
from tunnel_server.entrances.web.http2_protocol import (
    CONNECTION_WINDOW,
    MAX_STREAMS,
    make_protocol,
    start_protocol,
    with_key,
)
from tunnel_server.reverse_proxy.messages import BrowserRequest

CODES = h2.settings.SettingCodes
REQUEST = BrowserRequest(
    method=b"GET", scheme=b"https", authority=b"a", target=b"/", headers=[], source="192.0.2.1"
)


def test_the_first_settings_have_all_bounds() -> None:
    protocol = make_protocol(5000)
    start_protocol(protocol)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    events = client.receive_data(protocol.data_to_send())
    (settings,) = [event for event in events if isinstance(event, h2.events.RemoteSettingsChanged)]
    announced = {code: changed.new_value for code, changed in settings.changed_settings.items()}
    assert announced[CODES.MAX_CONCURRENT_STREAMS] == MAX_STREAMS
    assert announced[CODES.MAX_HEADER_LIST_SIZE] == 5000
    assert announced[CODES.INITIAL_WINDOW_SIZE] == INITIAL_WINDOW
    assert announced[CODES.ENABLE_CONNECT_PROTOCOL] == 1
    client.send_headers(1, [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a")])
    assert client.local_flow_control_window(1) == INITIAL_WINDOW
    assert client.outbound_flow_control_window == CONNECTION_WINDOW


def test_a_websocket_gets_a_key_of_16_random_bytes() -> None:
    asked = replace(REQUEST, upgrade=b"WebSocket")
    first, second = (
        [value for name, value in with_key(asked).headers if name == b"sec-websocket-key"] for _ in "ab"
    )
    assert len(base64.b64decode(first[0])) == 16
    assert first != second


@pytest.mark.parametrize("upgrade", [b"", b"connect-udp"])
def test_other_requests_get_none(upgrade: bytes) -> None:
    asked = replace(REQUEST, upgrade=upgrade)
    assert with_key(asked) is asked
