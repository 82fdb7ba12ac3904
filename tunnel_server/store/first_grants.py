"""Grants that exist without a command: those of a new installation, and those of an upgrade.

Before there were grants, every user could do everything but administer. The migration of the tables grants
that to every user of the store. ``finish_upgrade`` does the same for the users whom the configuration names.
A store that did not exist is no upgrade, because it may replace a lost one: it has no grant.
"""

from __future__ import annotations

from tunnel_server.auth.access_rules import UserKind
from tunnel_server.auth.grants import Grant
from tunnel_server.auth.users import LOOPBACK_USER
from tunnel_server.store import accounts, grants
from tunnel_server.store.grants import GrantChanges
from tunnel_server.store.transaction import Transaction

_LOOPBACK_NOTE = "programs of this machine at the web entrance, which has no login on loopback"
_NOTE = "written by the upgrade: what was allowed before there were grants"


def grant_to_operator(transaction: Transaction, operator: str, by: str) -> None:
    """Write the grants of a new installation: everything to the operator, services to programs beside it."""
    transaction.connection.execute("DELETE FROM grants WHERE created_by = 'upgrade'")
    transaction.connection.execute("DELETE FROM pending_upgrades WHERE name = 'configured_users'")
    table = {"id": operator, "users": [operator], "verbs": ["*"], "nodes": ["*"], "targets": ["*"]}
    operators = Grant.parse({**table, "note": "written by init"})
    grants.write(transaction, GrantChanges(added=(operators, _of_loopback("loopback"))), by)


def _of_loopback(name: str) -> Grant:
    table = {"id": name, "users": [LOOPBACK_USER], "verbs": ["http"], "nodes": ["*"], "targets": ["*"]}
    return Grant.parse({**table, "note": _LOOPBACK_NOTE})


def finish_upgrade(transaction: Transaction, users: tuple[str, ...], *, has_strangers: bool) -> None:
    """Grant what was allowed before to the users of the configuration, once after the upgrade.

    ``has_strangers``: another issuer vouches for users, whose names are unknown. The connection is in no
    transaction, and this function commits its own.
    """
    connection = transaction.connection
    if connection.execute("SELECT 1 FROM pending_upgrades").fetchone() is None:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _finish(transaction, users, has_strangers=has_strangers)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _finish(transaction: Transaction, users: tuple[str, ...], *, has_strangers: bool) -> None:
    transaction.connection.execute("DELETE FROM pending_upgrades WHERE name = 'configured_users'")
    stored = {grant.id: grant for grant in grants.all_grants(transaction.connection)}
    named = {user for grant in stored.values() for user in grant.users}
    new: list[Grant] = []
    if LOOPBACK_USER in users and LOOPBACK_USER not in named:
        new.append(_of_loopback("upgrade-loopback"))
    for number, user in enumerate(sorted(set(users) - named - {LOOPBACK_USER}), 1):
        if not accounts.has_user(transaction.connection, user):
            accounts.add_user(transaction, user, UserKind.SCRIPT, "named in the configuration", "upgrade")
        new.append(_before_grants(f"upgrade-configured-{number}", user))
    if has_strangers and "*" not in named:
        new.append(_before_grants("upgrade-everyone", "*"))
    changes = GrantChanges(added=tuple(grant for grant in new if grant.id not in stored))
    grants.write(transaction, changes, "upgrade")


def _before_grants(name: str, user: str) -> Grant:
    verbs = ["api", "connect", "http"]
    table = {"id": name, "users": [user], "verbs": verbs, "nodes": ["*"], "targets": ["*"]}
    return Grant.parse({**table, "note": _NOTE})
