"""What the store knows about access, in memory, for the checks of the data path. No I/O.

The store fills ``AccessRules`` with an ``AccessSnapshot`` when it is opened, and calls ``apply`` with an
``AccessChange`` after each transaction that changed users, groups, grants or labels.
Both are for the trio thread.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from tunnel_server.auth.grants import Grant

T = TypeVar("T")

NO_LABELS: Mapping[str, str] = MappingProxyType({})


class UserKind(enum.Enum):
    """A person logs in; a script has certificates and tokens only."""

    PERSON = "person"
    SCRIPT = "script"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the store, with the groups of the store. A disabled user may do nothing."""

    name: str
    kind: UserKind = UserKind.PERSON
    groups: frozenset[str] = frozenset()
    is_disabled: bool = False


@dataclass(frozen=True, slots=True)
class AccessSnapshot:
    """All accounts, grants, and the labels that were set on the server, by node."""

    accounts: tuple[Account, ...] = ()
    grants: tuple[Grant, ...] = ()
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccessChange:
    """What one transaction changed. None removes an account, a grant, or all labels of a node."""

    accounts: Mapping[str, Account | None] = field(default_factory=dict)
    grants: Mapping[str, Grant | None] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)


class AccessRules:
    """The accounts, grants and labels in force."""

    def __init__(self, snapshot: AccessSnapshot | None = None) -> None:
        snapshot = snapshot or AccessSnapshot()
        self._subscribers: list[Callable[[AccessChange], None]] = []
        self.accounts = {account.name: account for account in snapshot.accounts}
        self.grants = {grant.id: grant for grant in snapshot.grants}
        self._labels = {node: dict(labels) for node, labels in snapshot.labels.items()}

    def subscribe(self, on_change: Callable[[AccessChange], None]) -> None:
        """Call ``on_change`` after each change from now on. It must not block or raise."""
        self._subscribers.append(on_change)

    def labels_of(self, node: str) -> Mapping[str, str]:
        """Return the labels of a node that were set on the server. What its agent told is not among them."""
        return self._labels.get(node, NO_LABELS)

    def groups_of(self, user: str) -> frozenset[str]:
        """Return the groups of the store that a user is in."""
        account = self.accounts.get(user)
        return account.groups if account is not None else frozenset()

    def apply(self, change: AccessChange) -> None:
        """Take over a change, and call the subscribers."""
        _apply(self.accounts, change.accounts.items())
        _apply(self.grants, change.grants.items())
        for node, labels in change.labels.items():
            if labels:
                self._labels[node] = dict(labels)
            else:
                self._labels.pop(node, None)
        for on_change in self._subscribers:
            on_change(change)


def _apply(values: dict[str, T], changes: Iterable[tuple[str, T | None]]) -> None:
    for key, value in changes:
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
