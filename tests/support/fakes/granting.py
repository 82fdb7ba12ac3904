"""Grants for tests: everything to every user, and to the programs beside the web entrance on loopback."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunnel_server.access.access import Access
from tunnel_server.auth.access_rules import AccessRules, AccessSnapshot
from tunnel_server.auth.grants import Grant
from tunnel_server.auth.users import LOOPBACK_USER
from tunnel_server.store import grants
from tunnel_server.store.database import open_database
from tunnel_server.store.grants import GrantChanges
from tunnel_server.store.transaction import Transaction


def grant(name: str = "g", **table: Any) -> Grant:
    """A grant of everything to everybody, also to ``loopback``, unless ``table`` says otherwise.

    Only a test has a grant of both: for an administrator, ``*`` stands alone.
    """
    everything = {"users": ["*"], "verbs": ["*"], "nodes": ["*"], "targets": ["*"]}
    parsed = Grant.parse({"id": name, **everything, **table})
    return parsed if "users" in table else replace(parsed, users=("*", LOOPBACK_USER))


def everything_granted() -> AccessRules:
    return AccessRules(AccessSnapshot(grants=(grant("everything"),)))


def store_everything_granted(path: Path) -> None:
    """Create the store ``path`` with a grant of everything to every user."""
    with contextlib.closing(open_database(path)) as connection:
        everything = grant("everything", users=["*"]), grant("loopback", users=[LOOPBACK_USER])
        changes = GrantChanges(added=everything)
        grants.write(Transaction(connection, 0, must_audit=True), changes, "test")


def open_access(trust_domain: str) -> Access:
    """The access of a server at which every user may do everything."""
    return Access(everything_granted(), trust_domain=trust_domain, on_ended=lambda *ended: None)
