"""`python -m bench.systems.unbounded PROGRAM ARGUMENTS`: run a program with its flight limit off.

No setting switches the limit off, because no operator of a fleet needs that.
"""

from __future__ import annotations

import runpy
import sys

from tunnel_core.congestion import controller as flight
from tunnel_core.session import protocol as session

if __name__ == "__main__":
    session.CongestionController = flight.NoLimit  # type: ignore[misc]
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
