"""What a piece of work may do inside a transaction: run its SQL, and write audit lines along with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunnel_server.store import audit
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.database import Connection, DatabaseFailure


@dataclass(slots=True)
class Transaction:
    """``now`` is in milliseconds. ``lines`` are those of the audit, for its file."""

    connection: Connection
    now: int
    must_audit: bool
    lines: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0

    def audit(self, line: AuditLine) -> None:
        """Adds a line. Where the audit may be dropped, a line that cannot be written is counted instead."""
        if self.must_audit:
            self._add(line)
            return
        self.connection.execute("SAVEPOINT line")
        try:
            self._add(line)
        except DatabaseFailure:
            if not self.connection.in_transaction:  # it took the whole transaction with it
                raise
            self.connection.execute("ROLLBACK TO line")
            self.dropped += 1
        self.connection.execute("RELEASE line")

    def _add(self, line: AuditLine) -> None:
        number = audit.add(self.connection, self.now, line)
        self.lines.append(audit.as_json(number, self.now, line))
