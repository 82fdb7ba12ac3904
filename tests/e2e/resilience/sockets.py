"""The number of connections between agent and server, and the bytes in the queues of dead ones."""

from __future__ import annotations

from tests.support.net.emulated import Emulated
from tests.support.processes.programs import AGENTS_PORT
from tests.support.processes.waiting import wait_until

GONE_SECONDS = 6.0
"""An abandoned socket may be held that long."""


def wait_one_connection(net: Emulated, *, deadline_seconds: float = GONE_SECONDS) -> None:
    """Until each side has one socket, whatever state an abandoned one may be in."""

    def sockets() -> tuple[list[str], list[str]]:
        return net.connections(AGENTS_PORT), net.cloud_connections(AGENTS_PORT)

    def is_one() -> bool:
        return [len(side) for side in sockets()] == [1, 1]

    try:
        wait_until(is_one, "one connection at each side", deadline_seconds=deadline_seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}: {sockets()}") from None
