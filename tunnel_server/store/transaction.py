"""A transaction of the store: its connection, its time, and the audit lines that are written with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunnel_server.store import audit
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.database import Connection, DatabaseFailure


@dataclass(slots=True)
class Transaction:
    """A transaction. ``now`` is in milliseconds. ``lines`` are the audit lines, for the audit file.

    ``dropped`` counts the audit lines that could not be written.
    """

    connection: Connection
    now: int
    must_audit: bool
    lines: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0

    def audit(self, line: AuditLine) -> None:
        """Add an audit line. Unless ``must_audit`` is set, a line that cannot be written is only counted."""
        if self.must_audit:
            self._add(line)
            return
        self.connection.execute("SAVEPOINT line")
        try:
            self._add(line)
        except DatabaseFailure:
            if not self.connection.in_transaction:  # the failure has rolled back the whole transaction
                raise
            self.connection.execute("ROLLBACK TO line")
            self.dropped += 1
        self.connection.execute("RELEASE line")

    def _add(self, line: AuditLine) -> None:
        number = audit.add(self.connection, self.now, line)
        self.lines.append(audit.as_json(number, self.now, line))
