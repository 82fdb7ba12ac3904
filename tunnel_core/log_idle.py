"""Log lines are made when the loop has nothing else to do.

To format and write a line takes a good part of what a new connection costs, and somebody waits for
that connection. So records gather while there is work, and are written before the loop sleeps: at
once with a warning, with many of them, or at the end. Time and order of the lines stay what they were.
A process that is killed loses at most the lines of its last busy moment.
"""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler

import trio

_MOST_RECORDS = 256
"""So many are written however busy the loop is."""


class LinesWhenIdle(trio.abc.Instrument):
    """For ``trio.run``: holds back the lines of the root logger's handlers while there is work to do."""

    def __init__(self) -> None:
        self._held: list[MemoryHandler] = []

    def before_run(self) -> None:
        root = logging.getLogger()
        for handler in root.handlers[:]:
            held = MemoryHandler(_MOST_RECORDS, logging.WARNING, handler)
            root.removeHandler(handler)
            root.addHandler(held)
            self._held.append(held)

    def before_io_wait(self, timeout: float) -> None:
        if timeout > 0:
            for held in self._held:
                if held.buffer:
                    held.flush()

    def after_run(self) -> None:
        root = logging.getLogger()
        for held in self._held:
            held.flush()
            root.removeHandler(held)
            if held.target is not None:
                root.addHandler(held.target)
        self._held.clear()
