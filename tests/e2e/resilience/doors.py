"""Functions that open connections through the tunnel, as the measurements of ``bench`` need them."""

from __future__ import annotations

import socket

from bench.load import Dial
from tests.support.processes.site import Site


def dial_to(site: Site, port: int) -> Dial:
    """Return a function that dials a port of the first edge, through the server's unix socket."""

    def connect(*, receive_bytes: int = 0) -> socket.socket:
        answer = site.server.connect(f"edge1:{port}", timeout_seconds=60)
        assert answer.status == 200, f"{answer.status} {answer.phrase}"
        if receive_bytes:
            answer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        return answer.socket

    return connect
