"""Users and groups. SQL inside transactions of the caller.

A user has a row when a certificate was issued to the name, or when an administrator added the name. Users of
other issuers and of the configuration have none until then; grants may name them all the same.
"""

from __future__ import annotations

import difflib
from typing import Any

from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.access_rules import Account, UserKind
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import iso_of
from tunnel_server.store.transaction import Transaction

MAX_LISTED = 10_000
_MAX_COMPARED = 20_000


def note_certificate(transaction: Transaction, name: str, by: str) -> None:
    """Make a row for the user of a new certificate, unless there is one."""
    _insert(transaction, name, UserKind.PERSON, by or "certificate", "")


def add_user(transaction: Transaction, name: str, kind: UserKind, note: str, by: str) -> Account:
    """Add a user. Raises ``Refused`` with ``BAD_REQUEST`` for a user that exists."""
    if not _insert(transaction, name, kind, by, note):
        raise Refused(Reason.BAD_REQUEST, f"user {name} exists already; `qanat-server user list` shows it")
    detail = ", ".join(filter(None, (kind.value, note)))
    transaction.audit(AuditLine(AuditKind.USER_ADDED, user=name, done_by=by, detail=detail))
    return account(transaction.connection, name)


def _insert(transaction: Transaction, name: str, kind: UserKind, by: str, note: str) -> bool:
    return (
        transaction.connection.execute(
            "INSERT OR IGNORE INTO users (name, kind, created_at, created_by, note) VALUES (?, ?, ?, ?, ?)",
            (name, kind.value, transaction.now, by, note),
        ).rowcount
        > 0
    )


def set_disabled(transaction: Transaction, name: str, disabled: bool, by: str) -> Account:
    """Disable or enable a user. Raises ``Refused`` with ``NOT_FOUND``. A repetition changes nothing."""
    row = require_user(transaction.connection, name)
    if (row["disabled_at"] is not None) != disabled:
        at = transaction.now if disabled else None
        transaction.connection.execute("UPDATE users SET disabled_at = ? WHERE name = ?", (at, name))
        kind = AuditKind.USER_DISABLED if disabled else AuditKind.USER_ENABLED
        transaction.audit(AuditLine(kind, user=name, done_by=by))
    return account(transaction.connection, name)


def set_password(transaction: Transaction, name: str, password_hash: str | None, by: str) -> None:
    """Set or remove the hash of a user's password. Raises ``Refused`` with ``NOT_FOUND``."""
    require_user(transaction.connection, name)
    transaction.connection.execute(
        "UPDATE users SET password_hash = ?, password_at = ? WHERE name = ?",
        (password_hash, transaction.now if password_hash else None, name),
    )
    detail = "" if password_hash else "removed"
    transaction.audit(AuditLine(AuditKind.PASSWORD_SET, user=name, done_by=by, detail=detail))


def password_hash(connection: Connection, name: str) -> str | None:
    """Return the hash of a user's password; None for an unknown user and for one without a password."""
    row = connection.execute("SELECT password_hash FROM users WHERE name = ?", (name,)).fetchone()
    return row["password_hash"] if row else None


def account(connection: Connection, name: str) -> Account:
    """Return a user that has a row, with its groups."""
    row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
    members = connection.execute("SELECT user_group FROM group_members WHERE user = ?", (name,))
    return _account(row, frozenset(member["user_group"] for member in members))


def _account(row: Row, groups: frozenset[str]) -> Account:
    return Account(row["name"], UserKind(row["kind"]), groups, row["disabled_at"] is not None)


def all_accounts(connection: Connection) -> tuple[Account, ...]:
    """Return every user that has a row."""
    groups = _groups_by_user(connection)
    rows = connection.execute("SELECT * FROM users ORDER BY name")
    return tuple(_account(row, frozenset(groups.get(row["name"], ()))) for row in rows)


def _groups_by_user(connection: Connection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in connection.execute("SELECT user, user_group FROM group_members ORDER BY user_group"):
        found.setdefault(row["user"], []).append(row["user_group"])
    return found


def has_user(connection: Connection, name: str) -> bool:
    """Whether the user has a row."""
    return connection.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone() is not None


def require_user(connection: Connection, name: str) -> Row:
    """Return the row of a user. Raises ``Refused`` with ``NOT_FOUND``, which names similar users."""
    row: Row | None = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
    if row is None:
        hint = _near(connection, "users", name, f"add it: qanat-server user add {name[:300]}")
        raise Refused(Reason.NOT_FOUND, f"no user {name[:300]} is known here; {hint}")
    return row


def users_as_json(connection: Connection, now: int) -> list[dict[str, Any]]:
    """Return the users by name, without secrets."""
    groups = _groups_by_user(connection)
    rows = connection.execute(
        "SELECT users.*,"
        " (SELECT count(*) FROM certificates WHERE role = 'user' AND name = users.name AND ends_at > :now)"
        " AS certificates, (SELECT count(*) FROM api_tokens WHERE user = users.name AND revoked_at IS NULL"
        " AND expires_at > :now) AS tokens FROM users ORDER BY name LIMIT :most",
        {"now": now, "most": MAX_LISTED},
    )
    return [
        {
            "name": row["name"],
            "kind": row["kind"],
            "disabled": _time(row["disabled_at"]),
            "groups": groups.get(row["name"], []),
            "password_set": _time(row["password_at"]),
            "certificates": row["certificates"],
            "api_tokens": row["tokens"],
            "created": iso_of(row["created_at"]),
            "created_by": row["created_by"],
            "note": row["note"],
        }
        for row in rows
    ]


def _time(at: int | None) -> str | None:
    return None if at is None else iso_of(at)


# Groups.


def add_group(transaction: Transaction, name: str, note: str, by: str) -> None:
    """Add a group without members. Raises ``Refused`` with ``BAD_REQUEST`` for a group that exists."""
    made = transaction.connection.execute(
        "INSERT OR IGNORE INTO user_groups (name, created_at, created_by, note) VALUES (?, ?, ?, ?)",
        (name, transaction.now, by, note),
    )
    if not made.rowcount:
        raise Refused(Reason.BAD_REQUEST, f"group {name} exists already; `qanat-server group list` shows it")
    transaction.audit(AuditLine(AuditKind.GROUP_ADDED, done_by=by, detail=_about(name, note)))


def remove_group(transaction: Transaction, name: str, by: str) -> tuple[Account, ...]:
    """Remove a group, and return its members as they are now. Raises ``Refused`` with ``NOT_FOUND``."""
    members = members_of(transaction.connection, name)
    transaction.connection.execute("DELETE FROM user_groups WHERE name = ?", (name,))
    transaction.audit(AuditLine(AuditKind.GROUP_REMOVED, done_by=by, detail=_about(name, ", ".join(members))))
    return tuple(account(transaction.connection, member) for member in members)


def members_of(connection: Connection, name: str) -> list[str]:
    """Return the members of a group by name. Raises ``Refused`` with ``NOT_FOUND``."""
    if connection.execute("SELECT 1 FROM user_groups WHERE name = ?", (name,)).fetchone() is None:
        hint = _near(connection, "user_groups", name, "`qanat-server group list` shows the known ones")
        raise Refused(Reason.NOT_FOUND, f"there is no group {name[:300]}; {hint}")
    rows = connection.execute("SELECT user FROM group_members WHERE user_group = ? ORDER BY user", (name,))
    return [row["user"] for row in rows]


def change_members(
    transaction: Transaction, group: str, users: list[str], *, member: bool, by: str
) -> tuple[Account, ...]:
    """Add users to a group, or remove them, and return those that changed.

    Raises ``Refused`` with ``NOT_FOUND`` for an unknown group or user. Then nothing is changed.
    """
    before = set(members_of(transaction.connection, group))
    changed: list[Account] = []
    for user in dict.fromkeys(users):
        require_user(transaction.connection, user)
        if (user in before) == member:
            continue
        if member:
            transaction.connection.execute(
                "INSERT INTO group_members VALUES (?, ?, ?, ?)", (group, user, transaction.now, by)
            )
        else:
            transaction.connection.execute(
                "DELETE FROM group_members WHERE user_group = ? AND user = ?", (group, user)
            )
        kind = AuditKind.MEMBER_ADDED if member else AuditKind.MEMBER_REMOVED
        transaction.audit(AuditLine(kind, user=user, done_by=by, detail=f"group {group}"))
        changed.append(account(transaction.connection, user))
    return tuple(changed)


def groups_as_json(connection: Connection) -> list[dict[str, Any]]:
    """Return the groups by name, with their members."""
    members: dict[str, list[str]] = {}
    for user, groups in _groups_by_user(connection).items():
        for group in groups:
            members.setdefault(group, []).append(user)
    rows = connection.execute("SELECT * FROM user_groups ORDER BY name LIMIT ?", (MAX_LISTED,))
    return [
        {
            "name": row["name"],
            "members": sorted(members.get(row["name"], [])),
            "created": iso_of(row["created_at"]),
            "created_by": row["created_by"],
            "note": row["note"],
        }
        for row in rows
    ]


def _about(group: str, more: str) -> str:
    return f"group {group}: {more}" if more else f"group {group}"


def _near(connection: Connection, table: str, name: str, otherwise: str) -> str:
    rows = connection.execute(f"SELECT name FROM {table} ORDER BY name LIMIT ?", (_MAX_COMPARED,))  # noqa: S608
    near = difflib.get_close_matches(name[:200], [row["name"] for row in rows], n=3)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
