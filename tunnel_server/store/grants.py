"""Grants: rows, their changes, and the difference between two sets. SQL for a connection of the caller.

A column with a list has one item on each line, in the canonical order of ``tunnel_server.auth.grants``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry.logs import log_event
from tunnel_server.auth.grant_patterns import GrantError
from tunnel_server.auth.grants import Grant
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import iso_of
from tunnel_server.store.transaction import Transaction

MAX_GRANTS = 10_000
"""Grants of a server. A person reads them, and more belong into groups, patterns and labels."""
_COLUMNS = {
    "users": "users",
    "groups": "user_groups",
    "verbs": "verbs",
    "nodes": "nodes",
    "targets": "targets",
}
"""Keys of a grant's table that have lists, and their columns."""
_MAX_ID = 48

_log = logging.getLogger("qanat.store")


@dataclass(frozen=True, slots=True)
class GrantChanges:
    """The difference between the stored grants and the wanted ones. ``changed`` has pairs (before, after)."""

    added: tuple[Grant, ...] = ()
    changed: tuple[tuple[Grant, Grant], ...] = ()
    removed: tuple[Grant, ...] = ()
    unchanged: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.added or self.changed or self.removed)

    def by_id(self) -> dict[str, Grant | None]:
        """Return the grants after the change by id; None for those that are removed."""
        now: dict[str, Grant | None] = {grant.id: None for grant in self.removed}
        return now | {grant.id: grant for grant in (*self.added, *(after for _, after in self.changed))}


def all_grants(connection: Connection) -> tuple[Grant, ...]:
    """Return every grant, the oldest first.

    A row that is not valid, because it was changed by hand, allows nothing: it is logged and left out.
    """
    grants: list[Grant] = []
    for row in connection.execute("SELECT * FROM grants ORDER BY number"):
        try:
            grants.append(_grant(row))
        except GrantError as error:
            log_event(
                _log, logging.ERROR, "a stored grant is not valid and allows nothing", detail=str(error)
            )
    return tuple(grants)


def _grant(row: Row) -> Grant:
    lists = {key: row[column].split("\n") for key, column in _COLUMNS.items() if row[column]}
    return Grant.parse({"id": row["id"], **lists, **({"note": row["note"]} if row["note"] else {})})


def listed(connection: Connection) -> list[dict[str, Any]]:
    """Return the grants as JSON, the oldest first, each as its table and how it came about."""
    by_id = {grant.id: grant for grant in all_grants(connection)}
    rows = connection.execute("SELECT * FROM grants ORDER BY number").fetchall()
    return [
        {
            **as_json(by_id[row["id"]]),
            "created": iso_of(row["created_at"]),
            "created_by": row["created_by"],
            "changed": None if row["changed_at"] is None else iso_of(row["changed_at"]),
            "changed_by": row["changed_by"] or None,
        }
        for row in rows
        if row["id"] in by_id
    ]


def as_json(grant: Grant) -> dict[str, Any]:
    """Return the table of a grant, empty lists and the note included."""
    return {"id": grant.id, **{key: [] for key in _COLUMNS}, "note": "", **grant.as_table()}


def fingerprint(grants: Iterable[Grant]) -> str:
    """Return a text that is the same for the same grants, in any order."""
    tables = sorted((grant.as_table() for grant in grants), key=lambda table: str(table["id"]))
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def difference(stored: Sequence[Grant], wanted: Sequence[Grant], *, prune: bool) -> GrantChanges:
    """Return what has to change so that ``wanted`` are stored; with ``prune`` nothing else is stored then."""
    before = {grant.id: grant for grant in stored}
    after = {grant.id: grant for grant in wanted}
    changed = [(before[one], grant) for one, grant in after.items() if one in before and before[one] != grant]
    return GrantChanges(
        added=tuple(grant for one, grant in after.items() if one not in before),
        changed=tuple(changed),
        removed=tuple(grant for one, grant in before.items() if one not in after) if prune else (),
        unchanged=len(before.keys() & after.keys()) - len(changed),
    )


def write(transaction: Transaction, changes: GrantChanges, by: str) -> None:
    """Write changes, each with an audit line. Raises ``Refused`` if there would be too many grants."""
    connection, now = transaction.connection, transaction.now
    for grant in changes.removed:
        connection.execute("DELETE FROM grants WHERE id = ?", (grant.id,))
        _audit(transaction, AuditKind.GRANT_REMOVED, by, grant)
    for before, grant in changes.changed:
        columns = ", ".join(f"{name} = :{name}" for name in (*_COLUMNS.values(), "note"))
        connection.execute(
            f"UPDATE grants SET {columns}, changed_at = :now, changed_by = :by WHERE id = :id",  # noqa: S608
            {**_row(grant), "now": now, "by": by},
        )
        _audit(transaction, AuditKind.GRANT_CHANGED, by, grant, before)
    for grant in changes.added:
        columns = ", ".join((*_COLUMNS.values(), "note"))
        values = ", ".join(f":{name}" for name in (*_COLUMNS.values(), "note"))
        connection.execute(
            f"INSERT INTO grants (id, {columns}, created_at, created_by) VALUES (:id, {values}, :now, :by)",  # noqa: S608
            {**_row(grant), "now": now, "by": by},
        )
        _audit(transaction, AuditKind.GRANT_ADDED, by, grant)
    (count,) = connection.execute("SELECT count(*) FROM grants").fetchone()
    if count > MAX_GRANTS:
        raise Refused(Reason.BAD_REQUEST, f"there would be {count} grants; {MAX_GRANTS} are allowed")


def _row(grant: Grant) -> dict[str, str]:
    table = grant.as_table()
    lists = {column: "\n".join(table.get(key, ())) for key, column in _COLUMNS.items()}
    return {"id": grant.id, "note": grant.note, **lists}


def _audit(
    transaction: Transaction, kind: AuditKind, by: str, grant: Grant, before: Grant | None = None
) -> None:
    detail = sentence_of(grant) if before is None else f"{sentence_of(grant)}; before: {sentence_of(before)}"
    users = grant.users if len(grant.users) == 1 and grant.users != ("*",) else ()
    line = AuditLine(kind, user="".join(users), done_by=by, detail=f"{grant.id}: {detail}")
    transaction.audit(line)


def sentence_of(grant: Grant) -> str:
    """Return a grant in one line: who may do what where."""
    table: Mapping[str, Any] = grant.as_table()
    who = [*table.get("users", ()), *(f"group {group}" for group in table.get("groups", ()))]
    parts = [", ".join(who), "may", ", ".join(table["verbs"])]
    if grant.nodes:
        parts += ["on", ", ".join(table["nodes"])]
    if grant.targets:
        parts += ["to", ", ".join(table["targets"])]
    return " ".join(parts)


def add(transaction: Transaction, table: Mapping[str, Any], by: str) -> tuple[Grant, GrantChanges]:
    """Add a grant, with an id from its first subject if the table has none. Return it and what changed.

    A grant that exists already with the same content changes nothing, under whatever id, unless the table
    has another. Raises ``Refused`` with ``BAD_REQUEST`` for an id that another grant has, or a bad table.
    """
    stored = all_grants(transaction.connection)
    new = parsed({"id": "new", **table})
    if "id" not in table:
        new = replace(new, id=_free_id(new, {grant.id for grant in stored}))
    for grant in stored:
        if replace(new, id=grant.id, note=grant.note) == grant and table.get("id", grant.id) == grant.id:
            return grant, GrantChanges(unchanged=1)
    if any(grant.id == new.id for grant in stored):
        fix = f"choose another, or remove it first: qanat-server grant remove {new.id}"
        raise Refused(Reason.BAD_REQUEST, f"another grant has the id {new.id}; {fix}")
    changes = GrantChanges(added=(new,))
    write(transaction, changes, by)
    return new, changes


def parsed(table: Mapping[str, Any]) -> Grant:
    """Return the grant of a table. Raises ``Refused`` with ``BAD_REQUEST``."""
    try:
        return Grant.parse(table)
    except GrantError as error:
        raise Refused(Reason.BAD_REQUEST, str(error)) from None


def _free_id(grant: Grant, taken: set[str]) -> str:
    """Return an id that is not taken, from the name of the first group or user."""
    named = [*grant.groups, *grant.users]
    first = "everyone" if "*" in named else named[0]
    stem = re.sub(r"[^a-z0-9]+", "-", first.lower())[:_MAX_ID].strip("-") or "grant"
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def remove(transaction: Transaction, ids: Sequence[str], by: str) -> GrantChanges:
    """Remove grants by id. Raises ``Refused`` with ``NOT_FOUND``, and then removes none."""
    changes = GrantChanges(removed=tuple(require(transaction.connection, ids)))
    write(transaction, changes, by)
    return changes


def require(connection: Connection, ids: Sequence[str]) -> list[Grant]:
    """Return grants by id. Raises ``Refused`` with ``NOT_FOUND``."""
    by_id = {grant.id: grant for grant in all_grants(connection)}
    for one in ids:
        if one not in by_id:
            hint = "`qanat-server grant list` shows the ids"
            raise Refused(Reason.NOT_FOUND, f"there is no grant {one[:200]!r}; {hint}")
    return [by_id[one] for one in dict.fromkeys(ids)]
