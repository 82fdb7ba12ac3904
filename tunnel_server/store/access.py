"""Users, groups, grants, API tokens and labels of an open store, on the disk and in memory.

``AccessStore.rules`` and ``AccessStore.api_tokens`` are what the data path reads. Both follow each committed
change before the method that made it returns. Methods that wait for a write raise ``StoreError`` if the store
fails, and ``Refused`` if the change is not possible.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import trio

from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.access_rules import AccessChange, AccessRules, AccessSnapshot, Account, UserKind
from tunnel_server.auth.api_tokens import ApiToken, ApiTokens
from tunnel_server.auth.grants import Grant
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.store import accounts, api_tokens, grants, known_nodes, labels, subjects
from tunnel_server.store.api_tokens import NewApiToken
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection, StoreError
from tunnel_server.store.grants import GrantChanges
from tunnel_server.store.transaction import Transaction

WRITE_USES_SECONDS = 60.0
"""Seconds between two writes of the last uses of API tokens, so that a request costs no write."""

_PRUNING = "prune"
"""Who removed the labels of a node that was pruned, in the audit."""

T = TypeVar("T")
Json = dict[str, Any]


class _Write(Protocol):
    def __call__(
        self, work: Callable[[Transaction], T], on_committed: Callable[[T], None] | None = None
    ) -> Awaitable[T]: ...


class _Read(Protocol):
    def __call__(self, query: Callable[[Connection], T]) -> Awaitable[T]: ...


class AccessStore:
    """The part of ``Store`` that knows who may do what. Its task is ``write_uses_regularly``."""

    def __init__(self, write: _Write, read: _Read, now: Callable[[], int], reader: Connection) -> None:
        self._write, self._read, self._now = write, read, now
        self.rules = AccessRules(
            AccessSnapshot(
                accounts.all_accounts(reader), grants.all_grants(reader), labels.all_labels(reader)
            )
        )
        self.api_tokens = ApiTokens(api_tokens.in_force(reader, now()))

    # Users.

    async def users(self) -> list[Json]:
        """Return the users as JSON by name, without secrets."""
        return await self._read(lambda connection: accounts.users_as_json(connection, self._now()))

    async def add_user(self, name: str, kind: UserKind, note: str, by: str) -> None:
        """Add a user."""
        await self._write(
            lambda transaction: accounts.add_user(transaction, name, kind, note, by), self._take_account
        )

    async def set_disabled(self, name: str, disabled: bool, by: str) -> None:
        """Disable a user, who may do nothing then, or enable the user again."""
        await self._write(
            lambda transaction: accounts.set_disabled(transaction, name, disabled, by), self._take_account
        )

    async def set_password(self, name: str, password_hash: str | None, by: str) -> None:
        """Set the hash of a user's password; None removes it."""
        await self._write(lambda transaction: accounts.set_password(transaction, name, password_hash, by))

    async def password_hash(self, name: str) -> str | None:
        """Return the hash of a user's password; None for an unknown user and for one without a password."""
        return await self._read(lambda connection: accounts.password_hash(connection, name))

    # Groups.

    async def groups(self) -> list[Json]:
        """Return the groups as JSON by name, with their members."""
        return await self._read(accounts.groups_as_json)

    async def members_of(self, group: str) -> list[str]:
        """Return the members of a group by name."""
        return await self._read(lambda connection: accounts.members_of(connection, group))

    async def add_group(self, name: str, note: str, by: str) -> None:
        """Add a group without members."""
        await self._write(lambda transaction: accounts.add_group(transaction, name, note, by))

    async def remove_group(self, name: str, by: str) -> list[str]:
        """Remove a group, and return its members. Grants that name the group stay, for nobody."""
        changed = await self._write(
            lambda transaction: accounts.remove_group(transaction, name, by), self._take_accounts
        )
        return [account.name for account in changed]

    async def change_members(self, group: str, users: Sequence[str], *, member: bool, by: str) -> list[str]:
        """Add users to a group, or remove them, and return those that changed."""
        changed = await self._write(
            lambda transaction: accounts.change_members(
                transaction, group, list(users), member=member, by=by
            ),
            self._take_accounts,
        )
        return [account.name for account in changed]

    def _take_account(self, account: Account) -> None:
        self._take_accounts((account,))

    def _take_accounts(self, changed: tuple[Account, ...]) -> None:
        if changed:
            self.rules.apply(AccessChange(accounts={account.name: account for account in changed}))

    # Grants.

    async def grants(self) -> list[Json]:
        """Return the grants as JSON, the oldest first."""
        return await self._read(grants.listed)

    async def named_grants(self, ids: Sequence[str]) -> list[Grant]:
        """Return grants by id. Raises ``Refused`` with ``NOT_FOUND``."""
        return await self._read(lambda connection: grants.require(connection, ids))

    async def add_grant(self, table: Mapping[str, Any], by: str) -> tuple[Grant, bool]:
        """Add a grant from its table, and return it and whether it is new. The id may be missing."""

        def take(result: tuple[Grant, GrantChanges]) -> None:
            self._take_grants(result[1])

        grant, changes = await self._write(lambda transaction: grants.add(transaction, table, by), take)
        return grant, not changes.is_empty

    async def remove_grants(self, ids: Sequence[str], by: str) -> tuple[Grant, ...]:
        """Remove grants, and return them."""
        changes = await self._write(
            lambda transaction: grants.remove(transaction, ids, by), self._take_grants
        )
        return changes.removed

    async def preview_grants(self, wanted: Sequence[Grant], *, prune: bool) -> tuple[GrantChanges, str]:
        """Return what ``apply_grants`` would change, and the fingerprint of the grants that are there."""

        def preview(connection: Connection) -> tuple[GrantChanges, str]:
            stored = grants.all_grants(connection)
            return grants.difference(stored, wanted, prune=prune), grants.fingerprint(stored)

        return await self._read(preview)

    async def apply_grants(
        self, wanted: Sequence[Grant], *, prune: bool, expected: str, by: str
    ) -> GrantChanges:
        """Store ``wanted``, and with ``prune`` nothing else. Return what has changed.

        Raises ``Refused`` if the grants are no longer those of the fingerprint ``expected``; empty: any.
        """

        def apply(transaction: Transaction) -> GrantChanges:
            stored = grants.all_grants(transaction.connection)
            if expected and grants.fingerprint(stored) != expected:
                sentence = "the grants were changed meanwhile; nothing was changed, run this again"
                raise Refused(Reason.BAD_REQUEST, sentence)
            changes = grants.difference(stored, wanted, prune=prune)
            grants.write(transaction, changes, by)
            return changes

        return await self._write(apply, self._take_grants)

    def _take_grants(self, changes: GrantChanges) -> None:
        if not changes.is_empty:
            self.rules.apply(AccessChange(grants=changes.by_id()))

    async def unknown_subjects(self, given: Grant) -> list[str]:
        """Return sentences about names of a grant that nothing here knows yet, because they may be typos."""

        def unknown(connection: Connection) -> list[str]:
            known_groups = {group["name"] for group in accounts.groups_as_json(connection)}
            users = [user for user in given.users if user != "*" and not accounts.has_user(connection, user)]
            nodes = [
                str(node)
                for node in given.nodes
                if node.is_exact and not subjects.is_known(connection, RevocationKind.NODE, str(node))
            ]
            return [
                *(f"no user {user} is known here yet" for user in users),
                *(f"no group {group} is known here" for group in given.groups if group not in known_groups),
                *(f"no node {node} is known here yet" for node in nodes),
            ]

        return await self._read(unknown)

    # API tokens.

    async def create_api_token(self, new: NewApiToken, by: str) -> ApiToken:
        """Create a token, and return it with its expiry."""
        return await self._write(
            lambda transaction: api_tokens.create(transaction, new, by), self.api_tokens.put
        )

    async def revoke_api_token(self, token_id: str, by: str) -> None:
        """Revoke a token."""
        await self._write(
            lambda transaction: api_tokens.revoke(transaction, token_id, by), self.api_tokens.revoke
        )

    async def api_token(self, token_id: str) -> Json:
        """Return a token as JSON. Raises ``Refused`` with ``NOT_FOUND``."""
        await self.write_uses()
        return await self._read(
            lambda connection: api_tokens.as_json(api_tokens.find(connection, token_id), self._now())
        )

    async def api_token_list(self, user: str = "") -> list[Json]:
        """Return the tokens of one user or of all as JSON, newest last, without their secrets."""
        with contextlib.suppress(StoreError):  # A full disk does not hide the list.
            await self.write_uses()
        return await self._read(lambda connection: api_tokens.listed(connection, self._now(), user))

    async def write_uses(self) -> None:
        """Write the last uses of tokens. Raises ``StoreError``; these uses are lost then."""
        uses = self.api_tokens.take_uses()
        if uses:
            await self._write(lambda transaction: api_tokens.write_uses(transaction.connection, uses))

    async def write_uses_regularly(self) -> None:
        """Write the last uses of tokens every minute, until this task is cancelled."""
        while True:
            await trio.sleep(WRITE_USES_SECONDS)
            with contextlib.suppress(StoreError):  # the writer has logged it
                await self.write_uses()

    # Labels.

    async def labels(self) -> dict[str, dict[str, str]]:
        """Return the labels that were set here, by node and key."""
        return await self._read(labels.all_labels)

    async def label_node(
        self, node: str, changes: Mapping[str, str | None], by: str, *, force: bool
    ) -> dict[str, str]:
        """Set labels of a node, or remove those whose value is None. Return all labels of the node.

        Raises ``Refused`` with ``NOT_FOUND`` for an unknown node, unless ``force`` is set.
        """

        def change(transaction: Transaction) -> dict[str, str]:
            connection = transaction.connection
            is_known = subjects.is_known(connection, RevocationKind.NODE, node)
            if not is_known and not force and not labels.of_node(connection, node):
                raise subjects.unknown(connection, RevocationKind.NODE, node)
            return labels.change(transaction, node, changes, by)

        return await self._write(change, lambda after: self._take_labels(node, after))

    async def forget_node(self, node: str, by: str) -> None:
        """Remove a node from the known nodes, and its labels. Raises ``Refused`` with ``NOT_FOUND``."""
        await self._write(
            lambda transaction: _forget(transaction, node, by), lambda _: self._take_labels(node, {})
        )

    async def prune_nodes(self, keep: int, most: int) -> int:
        """Remove up to ``most`` known nodes that are too old or beyond ``keep``, with their labels.

        Returns the number of removed nodes.
        """

        def take(removed: list[str]) -> None:
            unlabelled = {name: None for name in removed if self.rules.labels_of(name)}
            if unlabelled:
                self.rules.apply(AccessChange(labels=unlabelled))

        removed = await self._write(lambda transaction: _prune_nodes(transaction, keep, most), take)
        return len(removed)

    def _take_labels(self, node: str, after: Mapping[str, str]) -> None:
        if dict(self.rules.labels_of(node)) != dict(after):
            self.rules.apply(AccessChange(labels={node: after or None}))


def _forget(transaction: Transaction, node: str, by: str) -> None:
    """Remove a node with its labels, because another machine may get the name later."""
    connection = transaction.connection
    if not known_nodes.forget(connection, node):
        raise subjects.unknown(connection, RevocationKind.NODE, node)
    transaction.audit(AuditLine(AuditKind.FORGOTTEN, node=node, done_by=by))
    labels.change(transaction, node, dict.fromkeys(labels.of_node(connection, node)), by)


def _prune_nodes(transaction: Transaction, keep: int, most: int) -> list[str]:
    """Remove old nodes with their labels, because another machine may get a name later."""
    connection = transaction.connection
    removed = known_nodes.prune(connection, transaction.now, keep=keep, most=most)
    for name in removed:
        labels.change(transaction, name, dict.fromkeys(labels.of_node(connection, name)), _PRUNING)
    return removed


def prune(connection: Connection, now: int, most: int) -> int:
    """Remove up to ``most`` API tokens that expired long ago, and return their number."""
    return api_tokens.prune(connection, now, most)
