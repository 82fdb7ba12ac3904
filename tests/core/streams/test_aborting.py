"""Aborts of streams of other kinds; those of our own are in test_relay.py."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest
import trio
import trio.testing

from tunnel_core.reasons import Reason
from tunnel_core.streams.aborting import abort
from tunnel_core.streams.sockets import SocketStream


async def test_a_stream_that_offers_none_is_left_to_its_owner() -> None:
    a, b = trio.testing.memory_stream_pair()
    abort(a, Reason.USER_LEFT)
    await a.send_all(b"x")
    assert await b.receive_some() == b"x"


async def test_it_reaches_through_trios_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        user = SocketStream(socket.create_connection(listener.getsockname()))
        near = SocketStream(listener.accept()[0])
    abort(trio.SSLStream(near, ssl.create_default_context(), server_hostname="x"), Reason.USER_LEFT)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await user.receive_some(1)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ECONNRESET
    user.close_nowait()
