"""Connections of one listener, counted for each user. No I/O."""

from __future__ import annotations

from tunnel_core.reasons import Reason, Refused
from tunnel_core.tally import Tally

_PER_FREE_PLACE = 2
"""Connections of a user for each free place, so that a lone user may take two thirds of all places."""


class UserConnections:
    """Count of the authenticated connections of one listener, which has ``max_connections`` places.

    Each user may have ``most`` connections. Beyond that number a user may add a connection only while the
    user has fewer than two for each free place. So a kube-apiserver reaches every node of a large cluster,
    and other users find places.
    """

    def __init__(self, most: int, max_connections: int) -> None:
        self._most = most
        self._max_connections = max_connections
        self._total = 0
        self._open: Tally[str] = Tally()

    def add(self, user: str) -> None:
        """Count a connection of ``user``. Raises ``Refused`` with ``TOO_MANY_OF_USER``."""
        own, free = self._open[user], self._max_connections - self._total
        if own >= self._most and own >= _PER_FREE_PLACE * free:
            refused = Refused(
                Reason.TOO_MANY_OF_USER,
                f"{user} has {own} connections here, the most for one user while {free} places are free; "
                "close some, or raise [limits] max_connections_per_user of the server",
            )
            refused.who = {"user": user}
            raise refused
        self._open[user] += 1
        self._total += 1

    def remove(self, user: str) -> None:
        """Stop counting a closed connection of ``user``."""
        self._total -= 1
        self._open.take(user)
