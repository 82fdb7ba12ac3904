"""A socket that was closed here says so to whoever waits for it afterwards, each time."""

from __future__ import annotations

import socket

import pytest
import trio

from tunnel_core.sockets import SocketStream


async def test_waiting_for_a_closed_socket_is_an_error_of_its_own() -> None:
    ends = [SocketStream(end) for end in socket.socketpair()]
    for end in ends:
        end.abort()
    for end in ends * 2:
        with pytest.raises(trio.ClosedResourceError):
            await end.wait_readable()
        with pytest.raises(trio.ClosedResourceError):
            await end.wait_writable()
