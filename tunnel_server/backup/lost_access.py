"""Restrictions of access that a restore would undo, as the commands that make them again.

A restore brings back the users, groups, grants, labels and API tokens of the backup. What was disabled,
removed, narrowed or revoked since is allowed again then, so the restore names it. A changed
password is not named.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from tunnel_server.auth.grant_patterns import EVERYTHING
from tunnel_server.auth.grants import Grant
from tunnel_server.store import grants, labels
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


_LISTS = ("users", "groups", "verbs", "nodes", "targets")


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


def is_before_grants(store: Path | None) -> bool:
    """Whether ``store`` has no grants yet, so that its upgrade will write them."""
    if store is None:
        return False
    query = "SELECT 1 FROM sqlite_master WHERE name = 'grants'"
    with failures(store), contextlib.closing(open_reader(store)) as connection:
        return connection.execute(query).fetchone() is None


def _commands(old: Connection, new: Connection) -> Iterator[str]:
    for command, allowed, restricted in _RESTRICTED:
        gone = {tuple(row) for row in old.execute(restricted)}
        for row in new.execute(allowed):
            if tuple(row) in gone:
                yield "qanat-server " + command.format(*map(shlex.quote, row))
    for words in (*_narrowed(old, new), *_removed_groups(old, new), *_lost_labels(old, new)):
        yield shlex.join(("qanat-server", *words))


def _narrowed(old: Connection, new: Connection) -> Iterator[list[str]]:
    """Yield commands that replace the grants which the old store changed later and narrowed."""
    changed = {row["id"]: row["changed_at"] for row in old.execute("SELECT * FROM grants")}
    written = {
        row["id"]: row["changed_at"] or row["created_at"] for row in new.execute("SELECT * FROM grants")
    }
    now = {grant.id: grant for grant in grants.all_grants(old)}
    for grant in grants.all_grants(new):
        if (
            grant.id in now
            and (changed[grant.id] or 0) > written[grant.id]
            and _allows_more(grant, now[grant.id])
        ):
            yield ["grant", "remove", grant.id, "--yes"]
            yield ["grant", "add", *_options(now[grant.id])]


def _allows_more(grant: Grant, than: Grant) -> bool:
    """Whether a list of ``grant`` has an item that the list of ``than`` lacks."""
    mine, others = grant.as_table(), than.as_table()
    return any(
        set(mine.get(key, ())) - set(others.get(key, ())) and EVERYTHING not in others.get(key, ())
        for key in _LISTS
    )


def _options(grant: Grant) -> Iterator[str]:
    table = grant.as_table()
    yield from ("--id", grant.id)
    for key in _LISTS:
        for text in table.get(key, ()):
            yield from (f"--{key.removesuffix('s')}", text)
    if grant.note:
        yield from ("--note", grant.note)


def _removed_groups(old: Connection, new: Connection) -> Iterator[list[str]]:
    details = [row["detail"] for row in old.execute("SELECT detail FROM audit WHERE kind = 'group_removed'")]
    kept = {row["name"] for row in old.execute("SELECT name FROM user_groups")}
    for row in new.execute("SELECT name FROM user_groups ORDER BY name"):
        about = f"group {row['name']}"
        if row["name"] not in kept and any(
            detail == about or detail.startswith(f"{about}: ") for detail in details
        ):
            yield ["group", "remove", row["name"], "--yes"]


def _lost_labels(old: Connection, new: Connection) -> Iterator[list[str]]:
    """Yield commands for labels that the old store once had, and then changed or removed."""
    once: set[tuple[str, str]] = set()
    for row in old.execute("SELECT node, detail FROM audit WHERE kind = 'node_labelled'"):
        once.update((row["node"], item) for item in row["detail"].split(", "))
    now = labels.all_labels(old)
    for node, of_node in labels.all_labels(new).items():
        for key, value in of_node.items():
            wanted = now.get(node, {}).get(key)
            if wanted != value and (node, f"{key}={value}") in once:
                yield ["node", "label", node, f"{key}-" if wanted is None else f"{key}={wanted}", "--force"]
