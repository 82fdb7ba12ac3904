"""kill -9 of the server, fifteen times, while tokens are made: no token that was handed out is lost."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from pathlib import Path

from certs.token import parse_token
from tests.e2e.attacks.ground import Ground
from tests.support.processes.programs import Server

KILLS = 15
MAKERS = 4
_MOST_TOKENS_BEFORE_A_KILL = 15


class Makers:
    """Users of the admin socket who make tokens until the server is gone; ``made`` are the acknowledged."""

    def __init__(self, server: Server) -> None:
        self.made: list[str] = []
        self._server = server
        self._enough = threading.Event()
        self._wanted = 0

    def make_until_killed(self, count: int) -> None:
        """Kill the server when ``count`` more tokens were acknowledged."""
        self._wanted = len(self.made) + count
        self._enough.clear()
        threads = [threading.Thread(target=self._make, daemon=True) for _ in range(MAKERS)]
        for thread in threads:
            thread.start()
        assert self._enough.wait(20), "the tokens were not made in time"
        self._server.process.kill()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()

    def _make(self) -> None:
        # An answer that was cut off is no acknowledgement, whatever the store has.
        with contextlib.suppress(OSError, AssertionError, ValueError):
            while True:
                self.made.append(parse_token(self._server.token(f"node-{len(self.made)}")).id)
                if len(self.made) >= self._wanted:
                    self._enough.set()


def test_no_token_is_lost(site: Ground) -> None:
    dice = random.Random(15)  # noqa: S311 - when to kill
    makers = Makers(site.server)
    site.agent.process.kill()  # so that only the server is started again and again
    for _ in range(KILLS):
        makers.make_until_killed(dice.randrange(1, _MOST_TOKENS_BEFORE_A_KILL))
        _require_sound(site.server.data_dir)
        site.server.start()
        kept = {token["id"] for token in site.server.ask("/api/v1/admin/tokens")["tokens"]}
        assert set(makers.made) <= kept
    assert len(makers.made) >= KILLS


def _require_sound(data_dir: Path) -> None:
    [file] = data_dir.glob("*.db")
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
