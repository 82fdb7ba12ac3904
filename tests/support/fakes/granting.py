"""Grants for tests: everything to every user, as before there were grants."""

from __future__ import annotations

from typing import Any

from tunnel_server.access.access import Access
from tunnel_server.auth.access_rules import AccessRules, AccessSnapshot
from tunnel_server.auth.grants import Grant


def grant(name: str = "g", **table: Any) -> Grant:
    """A grant of everything to everybody, unless ``table`` says otherwise."""
    everything = {"users": ["*"], "verbs": ["*"], "nodes": ["*"], "targets": ["*"]}
    return Grant.parse({"id": name, **everything, **table})


def everything_granted() -> AccessRules:
    return AccessRules(AccessSnapshot(grants=(grant("everything"),)))


def open_access(trust_domain: str) -> Access:
    """The access of a server at which every user may do everything."""
    return Access(everything_granted(), trust_domain=trust_domain, on_ended=lambda *ended: None)
