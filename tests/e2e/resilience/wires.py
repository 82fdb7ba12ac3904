"""Connections over the emulated link outside of the tunnel."""

from __future__ import annotations

import socket

from tests.support.net.emulated import Emulated


def open_pair(net: Emulated) -> tuple[socket.socket, socket.socket]:
    """A TCP connection that the edge dialled: the cloud's end and the edge's."""
    with net.cloud.entered(), socket.create_server((net.network.cloud_address, 0)) as listener:
        with net.edge.entered():
            edge = socket.create_connection(listener.getsockname(), timeout=10)
        cloud, _ = listener.accept()
    for end in (cloud, edge):
        end.settimeout(10)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return cloud, edge
