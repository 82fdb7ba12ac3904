"""Actions of an administrator on users, groups, grants, API tokens and labels.

Each takes the store, arguments and the administrator's name, and returns JSON. All raise ``Refused``.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tunnel_core.humanize import as_iso
from tunnel_core.identity import Role
from tunnel_server.admin.arguments import Arguments, bad
from tunnel_server.auth.access_rules import UserKind
from tunnel_server.auth.api_tokens import SECRET_BYTES, digest_of, format_api_token
from tunnel_server.auth.grant_patterns import GrantError, parse_label
from tunnel_server.auth.grants import Grant, grants_of, is_group_name, why_no_group
from tunnel_server.auth.passwords import is_password_hash
from tunnel_server.store.api_tokens import NewApiToken
from tunnel_server.store.grants import GrantChanges, as_json, sentence_of
from tunnel_server.store.store import Store
from tunnel_server.store.timestamps import from_ms

Json: TypeAlias = dict[str, Any]
AccessAction: TypeAlias = Callable[[Store, Arguments, str], Awaitable[Json]]

DEFAULT_API_TOKEN_SECONDS = 90 * 24 * 3600
MAX_API_TOKEN_SECONDS = 5 * 365 * 24 * 3600
_MAX_NOTE = 200
_MAX_TOKEN_NAME = 64
_ID_BYTES = 10


# Users.


async def users(store: Store, given: Arguments, by: str) -> Json:
    given.done()
    return {"users": await store.access.users()}


async def add_user(store: Store, given: Arguments, by: str) -> Json:
    name, note, is_script = given.name(Role.USER), _note(given), given.flag("script")
    given.done()
    kind = UserKind.SCRIPT if is_script else UserKind.PERSON
    await store.access.add_user(name, kind, note, by)
    return {"added": name, "kind": kind.value, "grants": grants_of_user(store, name)}


async def disable_user(store: Store, given: Arguments, by: str) -> Json:
    return await _set_disabled(store, given, by, disabled=True)


async def enable_user(store: Store, given: Arguments, by: str) -> Json:
    return await _set_disabled(store, given, by, disabled=False)


async def _set_disabled(store: Store, given: Arguments, by: str, *, disabled: bool) -> Json:
    name = given.name(Role.USER)
    given.done()
    account = store.access.rules.accounts.get(name)
    again = account is not None and account.is_disabled == disabled
    await store.access.set_disabled(name, disabled, by)
    return {"name": name, "disabled": disabled, "again": again}


async def set_password(store: Store, given: Arguments, by: str) -> Json:
    """Set the hash of a password, which the command made: no server and no log sees the password."""
    name, password_hash, remove = given.name(Role.USER), given.text("hash", ""), given.flag("remove")
    given.done()
    if remove == bool(password_hash):
        raise bad("give either hash or remove")
    if password_hash and not is_password_hash(password_hash):
        raise bad("hash is not an argon2id hash with costs that this server accepts")
    await store.access.set_password(name, password_hash or None, by)
    return {"name": name, "has_password": not remove}


def grants_of_user(store: Store, user: str) -> list[str]:
    """Return the ids of the grants that a user has now, also through groups."""
    rules = store.access.rules
    groups = rules.groups_of(user)
    return [
        grant.id
        for grant in rules.grants.values()
        if user in grant.users or "*" in grant.users or groups & set(grant.groups)
    ]


async def user_access(store: Store, given: Arguments, by: str) -> Json:
    """Return the grants of a user, who need not be known."""
    name = given.name(Role.USER)
    given.done()
    return {"name": name, "grants": grants_of_user(store, name)}


# Groups.


async def groups(store: Store, given: Arguments, by: str) -> Json:
    given.done()
    return {"groups": await store.access.groups()}


async def add_group(store: Store, given: Arguments, by: str) -> Json:
    name, note = _group(given), _note(given)
    given.done()
    await store.access.add_group(name, note, by)
    return {"added": name}


async def remove_group(store: Store, given: Arguments, by: str) -> Json:
    name = _group(given)
    given.done()
    return {"removed": name, "members": await store.access.remove_group(name, by)}


async def add_members(store: Store, given: Arguments, by: str) -> Json:
    return await _change_members(store, given, by, member=True)


async def remove_members(store: Store, given: Arguments, by: str) -> Json:
    return await _change_members(store, given, by, member=False)


async def _change_members(store: Store, given: Arguments, by: str, *, member: bool) -> Json:
    group, names = _group(given), given.texts("users")
    given.done()
    changed = await store.access.change_members(group, names, member=member, by=by)
    return {"group": group, "changed": changed, "members": await store.access.members_of(group)}


def _group(given: Arguments) -> str:
    name = given.text("group")
    if not is_group_name(name):
        raise bad(why_no_group(name))
    return name


def _note(given: Arguments) -> str:
    note = given.text("note", "")
    if len(note) > _MAX_NOTE or not (note.isprintable() or not note):
        raise bad(f"note is not one printable line of at most {_MAX_NOTE} characters")
    return note


# Grants.


async def list_grants(store: Store, given: Arguments, by: str) -> Json:
    given.done()
    return {"grants": await store.access.grants()}


async def add_grant(store: Store, given: Arguments, by: str) -> Json:
    table = given.table("grant")
    given.done()
    grant, is_new = await store.access.add_grant(table, by)
    unknown = await store.access.unknown_subjects(grant)
    return {"grant": as_json(grant), "text": sentence_of(grant), "again": not is_new, "unknown": unknown}


async def preview_removal(store: Store, given: Arguments, by: str) -> Json:
    ids = given.texts("ids")
    given.done()
    return {"removes": list(map(_shown, await store.access.named_grants(ids)))}


async def remove_grants(store: Store, given: Arguments, by: str) -> Json:
    ids = given.texts("ids")
    given.done()
    return {"removed": list(map(_shown, await store.access.remove_grants(ids, by)))}


async def preview_apply(store: Store, given: Arguments, by: str) -> Json:
    wanted, prune = _wanted(given), given.flag("prune")
    given.done()
    changes, fingerprint = await store.access.preview_grants(wanted, prune=prune)
    return {**_changes(changes), "fingerprint": fingerprint}


async def apply_grants(store: Store, given: Arguments, by: str) -> Json:
    wanted, prune, expected = _wanted(given), given.flag("prune"), given.text("fingerprint", "")
    given.done()
    return _changes(await store.access.apply_grants(wanted, prune=prune, expected=expected, by=by))


def _wanted(given: Arguments) -> tuple[Grant, ...]:
    try:
        return grants_of(given.table("document"))
    except GrantError as error:
        raise bad(str(error)) from None


def _changes(changes: GrantChanges) -> Json:
    return {
        "added": list(map(_shown, changes.added)),
        "changed": [{**_shown(after), "before": as_json(before)} for before, after in changes.changed],
        "removed": list(map(_shown, changes.removed)),
        "unchanged": changes.unchanged,
    }


def _shown(grant: Grant) -> Json:
    return {**as_json(grant), "text": sentence_of(grant)}


# API tokens.


async def list_api_tokens(store: Store, given: Arguments, by: str) -> Json:
    user = given.text("user", "")
    given.done()
    return {"api_tokens": await store.access.api_token_list(user)}


async def api_token(store: Store, given: Arguments, by: str) -> Json:
    token_id = given.text("id")
    given.done()
    return {"api_token": await store.access.api_token(token_id)}


async def create_api_token(store: Store, given: Arguments, by: str) -> Json:
    user, name = given.name(Role.USER, "user"), given.text("name")
    ttl = given.number("ttl_seconds", DEFAULT_API_TOKEN_SECONDS, least=60, most=MAX_API_TOKEN_SECONDS)
    given.done()
    if not name.isprintable() or not 0 < len(name) <= _MAX_TOKEN_NAME or name != name.strip():
        raise bad(f"name is not one printable line of 1 to {_MAX_TOKEN_NAME} characters")
    text = format_api_token(secrets.token_bytes(SECRET_BYTES))
    digest = digest_of(text)
    assert digest is not None
    token_id = base64.b32encode(secrets.token_bytes(_ID_BYTES)).decode().lower()
    made = await store.access.create_api_token(NewApiToken(token_id, user, name, digest, ttl), by)
    return {
        "id": made.id,
        "token": text,
        "user": made.user,
        "name": made.name,
        "expires": as_iso(from_ms(made.expires_at), "milliseconds"),
        "grants": grants_of_user(store, user),
    }


async def revoke_api_token(store: Store, given: Arguments, by: str) -> Json:
    token_id = given.text("id")
    given.done()
    await store.access.revoke_api_token(token_id, by)
    return {"revoked": token_id}


# Labels.


async def list_labels(store: Store, given: Arguments, by: str) -> Json:
    given.done()
    return {"labels": await store.access.labels()}


async def label_node(store: Store, given: Arguments, by: str) -> Json:
    node, changes, force = given.name(Role.NODE), _label_changes(given), given.flag("force")
    given.done()
    before = dict(store.access.rules.labels_of(node))
    after = await store.access.label_node(node, changes, by, force=force)
    return {"node": node, "labels": after, "changed": before != after}


def _label_changes(given: Arguments) -> dict[str, str | None]:
    changes: dict[str, str | None] = {}
    for text in given.texts("labels"):
        try:
            if text.endswith("-") and "=" not in text:
                key, value = parse_label(f"{text[:-1]}=x")[0], None
            else:
                key, value = parse_label(text)
        except GrantError as error:
            raise bad(str(error)) from None
        if key in changes:
            raise bad(f"{key} is named twice")
        changes[key] = value
    return changes


ACCESS_READS: dict[str, AccessAction] = {
    "users": users,
    "users/access": user_access,
    "groups": groups,
    "grants": list_grants,
    "api-tokens": list_api_tokens,
    "api-token": api_token,
    "labels": list_labels,
}
ACCESS_WRITES: dict[str, AccessAction] = {
    "users/add": add_user,
    "users/disable": disable_user,
    "users/enable": enable_user,
    "users/password": set_password,
    "groups/add": add_group,
    "groups/remove": remove_group,
    "groups/add-members": add_members,
    "groups/remove-members": remove_members,
    "grants/add": add_grant,
    "grants/remove/preview": preview_removal,
    "grants/remove": remove_grants,
    "grants/apply/preview": preview_apply,
    "grants/apply": apply_grants,
    "api-tokens/create": create_api_token,
    "api-tokens/revoke": revoke_api_token,
    "nodes/label": label_node,
}
"""Actions of GET and of POST, by the part of the path below ``/api/v1/admin/``. Previews change nothing."""
