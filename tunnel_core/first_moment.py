"""The first moment of ``qanat-server`` and ``qanat-agent``: what must come before their imports."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def maybe_health(find_file: Callable[[], Path], default: str) -> int | None:
    """The exit code of ``health``, answered here so that it waits for no import; None for all else.

    ``find_file`` finds the configuration unless ``--config`` names it; ``default`` is ``[ops] listen``.
    """
    if sys.argv[1:2] != ["health"]:
        return None
    from tunnel_core.health import Door, Unhealthy, file_named, report

    try:
        named = file_named(sys.argv[2:])
    except ValueError:
        return None  # --help, or a mistake: the command line says more about it
    try:
        door = Door.find(named or find_file(), default, os.environ)
    except Unhealthy as error:
        sys.stderr.write(f"unhealthy: {error}\n")
        return 1
    return report(door)


def obey_sigterm() -> None:
    """Lets SIGTERM end process 1 of a container before its own handler stands.

    The kernel spares process 1 the signals that it has no handler for, so a container that is stopped
    while it starts, or joins, would be killed only when the patience of its runtime ends. Whatever runs in
    that time survives a kill at any moment.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
