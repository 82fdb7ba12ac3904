"""How many connections there are between agent and server, and what lies in the queues of dead ones."""

from __future__ import annotations

from tests.e2e.programs import AGENTS_PORT
from tests.e2e.site import Site
from tests.e2e.waiting import wait_until
from tests.net.emulated import Emulated

GONE_SECONDS = 6.0
"""An abandoned socket may be held that long."""


def wait_one_connection(site: Site, net: Emulated, *, deadline_seconds: float = GONE_SECONDS) -> None:
    """Until each side has one socket, whatever state an abandoned one may be in."""

    def is_one() -> bool:
        return len(net.connections()) == 1 and len(_at_server(site)) == 1

    try:
        wait_until(is_one, "one connection at each side", deadline_seconds=deadline_seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}: agent {net.connections()}, server {_at_server(site)}") from None


def _at_server(site: Site) -> list[str]:
    port = ("sport", "=", f":{AGENTS_PORT}")
    # A socket that waits out TIME-WAIT belongs to nobody and holds nothing.
    shown = site.server.namespace.run("ss", "-Htn", "state", "connected", "exclude", "time-wait", *port)
    return shown.splitlines()
