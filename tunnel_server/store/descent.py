"""Descent of certificates: which certificate was renewed from which. SQL inside transactions of the caller.

``certificates.previous`` is the serial of the renewed certificate. The column is empty for a first
certificate, and for renewals that were recorded before the store had the column.
"""

from __future__ import annotations

from tunnel_server.store.database import Connection, Row


def renewed_from(connection: Connection, serial: str, since: int) -> list[Row]:
    """Return the certificates that descend from ``serial`` and end after ``since``, oldest first.

    The search includes certificates that have expired, because a descendant outlives its ancestors.
    """
    return connection.execute(
        "WITH RECURSIVE family (serial) AS (SELECT serial FROM certificates WHERE previous = :serial"
        " UNION SELECT new.serial FROM certificates AS new JOIN family ON new.previous = family.serial)"
        " SELECT certificates.* FROM certificates JOIN family USING (serial)"
        " WHERE ends_at > :since AND serial <> :serial ORDER BY certificates.rowid",
        {"serial": serial, "since": since},
    ).fetchall()


def of_unknown_descent(connection: Connection, serial: str, now: int) -> list[Row]:
    """Return renewals that may descend from ``serial``: later renewals of its name without ``previous``."""
    return connection.execute(
        "SELECT new.* FROM certificates AS new JOIN certificates AS old ON new.role = old.role"
        " AND new.name = old.name WHERE old.serial = ? AND new.origin = 'renewed' AND new.previous = ''"
        " AND new.rowid > old.rowid AND new.ends_at > ? ORDER BY new.rowid",
        (serial, now),
    ).fetchall()


def remove(connection: Connection, serial: str) -> None:
    """Remove a certificate, and make its ancestor the ancestor of the certificates renewed from it."""
    connection.execute(
        "UPDATE certificates SET previous = (SELECT previous FROM certificates WHERE serial = :serial)"
        " WHERE previous = :serial"
        " AND (SELECT previous FROM certificates WHERE serial = :serial) <> ''",
        {"serial": serial},
    )
    connection.execute("DELETE FROM certificates WHERE serial = ?", (serial,))
