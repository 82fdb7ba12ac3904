"""Restrictions of access that a restore would undo, as the commands that make them again.

A restore brings back the users, grants and API tokens of the backup. What was disabled, removed or revoked
since is allowed again then, so the restore names it.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from tunnel_server.store.database import Connection, DatabaseFailure, StoreError, failures, open_reader

_RESTRICTED = (
    (
        "grant remove {} --yes",
        "SELECT id FROM grants",
        "SELECT substr(detail, 1, instr(detail, ':') - 1) AS one FROM audit WHERE kind = 'grant_removed'"
        " AND one NOT IN (SELECT id FROM grants)",
    ),
    (
        "user disable {} --yes",
        "SELECT name FROM users WHERE disabled_at IS NULL",
        "SELECT name FROM users WHERE disabled_at IS NOT NULL",
    ),
    (
        "api-token revoke {} --yes",
        "SELECT id FROM api_tokens WHERE revoked_at IS NULL",
        "SELECT id FROM api_tokens WHERE revoked_at IS NOT NULL",
    ),
    (
        "group remove-member {} {}",
        "SELECT user_group, user FROM group_members",
        "SELECT substr(detail, length('group ') + 1) AS one, user FROM audit WHERE kind = 'member_removed'"
        " AND NOT EXISTS (SELECT 1 FROM group_members WHERE user_group = one AND user = audit.user)",
    ),
)
"""A command, the rows of the restored store that allow something, and those that the old store restricted."""


def lost_restrictions(old: Path, new: Path | None) -> list[str]:
    """Return the commands that restrict the restored store ``new`` again as the store ``old`` did.

    An unreadable store, and a store of before grants, have none.
    """
    if new is None or not old.is_file():
        return []
    with (
        contextlib.suppress(StoreError, DatabaseFailure),
        failures(old),
        contextlib.closing(open_reader(old)) as before,
        contextlib.closing(open_reader(new)) as after,
    ):
        return list(_commands(before, after))
    return []


def _commands(old: Connection, new: Connection) -> Iterator[str]:
    for command, allowed, restricted in _RESTRICTED:
        gone = {tuple(row) for row in old.execute(restricted)}
        for row in new.execute(allowed):
            if tuple(row) in gone:
                yield "qanat-server " + command.format(*map(shlex.quote, row))
