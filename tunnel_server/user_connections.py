"""Connections of one listener, counted for each user. No I/O."""

from __future__ import annotations

from collections import Counter

from tunnel_core.reasons import Reason, Refused


class UserConnections:
    """The authenticated connections of one listener. One user may have ``most`` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    def add(self, user: str) -> None:
        """Count a connection of ``user``. Raises ``Refused`` with ``TOO_MANY_OF_USER``."""
        if self._open[user] >= self._most:
            refused = Refused(
                Reason.TOO_MANY_OF_USER,
                f"{user} has {self._most} connections here, the most for one user; "
                "close some, or raise [limits] max_connections_per_user of the server",
            )
            refused.who = {"user": user}
            raise refused
        self._open[user] += 1

    def remove(self, user: str) -> None:
        """A connection that was counted is closed."""
        self._open[user] -= 1
        if self._open[user] <= 0:
            del self._open[user]
