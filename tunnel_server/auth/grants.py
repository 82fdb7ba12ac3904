"""Grants: which users and groups may do which verbs on which nodes and targets. Values only, no I/O.

A grant allows, and nothing denies: what no grant allows is refused. A grant has one canonical table, in TOML,
JSON or YAML: ``Grant.parse`` reads the table and ``Grant.as_table`` returns it.

1. ``users`` and ``groups`` name the subjects. The user ``*`` is every authenticated user, so not
   ``loopback``.
2. ``nodes`` has names, names with ``*`` (which matches no dot), and label selectors such as ``site=hamburg``
   or ``site=hamburg,tier=1``. A selector reads only labels that were set on the server.
3. ``targets`` has services, ports of the node itself, ``host:port`` and unix sockets. A service and the port
   that it leads to are two targets, because the agent decides where a service leads.
4. ``*`` alone is every node, every target, or every verb, also of later versions. The verb admin concerns
   no node, so ``*`` includes it only if the nodes are ``*`` too.
"""

from __future__ import annotations

import enum
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunnel_core.identity import Role, is_identity_name, why_no_name
from tunnel_server.auth.grant_patterns import EVERYTHING, GrantError, NodePattern, TargetPattern

MAX_PATTERNS = 1000
"""Users, groups, nodes or targets of one grant. A longer list belongs in a group or a label."""
MAX_NOTE = 200
"""Characters in the note of a grant, which is shown in lists."""
_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_GROUP = re.compile(r"[A-Za-z0-9/]([A-Za-z0-9._@:/ -]{0,126}[A-Za-z0-9])?")


class Verb(enum.Enum):
    """What a user may do. Each verb is enforced by the entrances that can tell it from the others."""

    CONNECT = "connect"
    """Raw streams to a target: the ``connect`` entrance."""
    HTTP = "http"
    """Requests and WebSockets to a service through the ``web`` entrance."""
    API = "api"
    """Reading a node in the API: lists, status, events."""
    ADMIN = "admin"
    """Asking what other users may do. Changes of the server need the admin socket. It concerns no node."""

    @property
    def opens_streams(self) -> bool:
        """Whether the verb leads to a target."""
        return self in (Verb.CONNECT, Verb.HTTP)


UNENFORCEABLE = {
    word: f"raw connect cannot tell {word} from {other}, and no entrance of this version can"
    for word, other in {
        "logs": "exec",
        "exec": "logs",
        "attach": "exec",
        "cp": "exec",
        "port-forward": "exec",
        "ssh": "any other stream",
        "read": "write",
        "write": "read",
    }.items()
}
"""Verbs that a person may expect here, with the reason why no entrance enforces them."""


def is_group_name(text: str) -> bool:
    """Whether ``text`` may be the name of a group, of the store or of a login provider."""
    return _GROUP.fullmatch(text) is not None


def why_no_group(text: str) -> str:
    """Return a sentence that quotes an invalid name of a group and states the rule."""
    rule = "letters, digits and '.', '_', '@', ':', '/', '-' or spaces inside, 128 characters at most"
    return f"{text[:200]!r} is not a group's name: {rule}"


def is_grant_id(text: str) -> bool:
    """Whether ``text`` may be the id of a grant."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant. Construct with ``parse``, which checks, orders and removes duplicates."""

    id: str
    users: tuple[str, ...]
    groups: tuple[str, ...]
    verbs: frozenset[Verb]
    """The verbs that it allows. ``*`` stands for all; without admin, unless the nodes are ``*``."""
    nodes: tuple[NodePattern, ...]
    targets: tuple[TargetPattern, ...]
    note: str = ""
    every_verb: bool = False
    """Whether the table has ``*``, so that verbs of later versions are allowed too."""
    _exact: frozenset[str] = field(init=False, repr=False, compare=False)
    _patterns: tuple[NodePattern, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact = frozenset(pattern.name for pattern in self.nodes if pattern.is_exact)
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(
            self, "_patterns", tuple(pattern for pattern in self.nodes if not pattern.is_exact)
        )

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Grant:
        """Parse a canonical table. Raises ``GrantError`` with a sentence that names the mistake."""
        given = dict(table)
        name = _id(given.pop("id", None))
        where = f"grant {name}"
        users = _names(given.pop("users", []), where, "users", _user)
        groups = _names(given.pop("groups", []), where, "groups", _group)
        if not users and not groups:
            raise GrantError(f"{where} names nobody: give users or groups")
        verbs = _names(given.pop("verbs", []), where, "verbs", _verb)
        if not verbs:
            raise GrantError(f"{where} has no verbs: give some of {_VERBS}, or *")
        every = EVERYTHING in verbs
        nodes = tuple(
            map(NodePattern.parse, _names(given.pop("nodes", []), where, "nodes", _checked(NodePattern)))
        )
        targets = tuple(
            map(
                TargetPattern.parse,
                _names(given.pop("targets", []), where, "targets", _checked(TargetPattern)),
            )
        )
        members = _members(verbs, nodes)
        note = _note(given.pop("note", ""), where)
        if given:
            raise GrantError(f"{where} has no key {str(min(given))[:80]!r}; the keys are {', '.join(_KEYS)}")
        grant = cls(name, users, groups, members, nodes, targets, note, every)
        _check_places(grant, where)
        return grant

    def as_table(self) -> dict[str, Any]:
        """Return the canonical table. Empty lists are left out."""
        verbs = [EVERYTHING] if self.every_verb else sorted(verb.value for verb in self.verbs)
        table: dict[str, Any] = {
            "id": self.id,
            "users": list(self.users),
            "groups": list(self.groups),
            "verbs": verbs,
            "nodes": list(map(str, self.nodes)),
            "targets": list(map(str, self.targets)),
            "note": self.note,
        }
        return {key: value for key, value in table.items() if value}

    def as_toml(self) -> str:
        """Return the canonical text: a ``[[grant]]`` table."""
        lines = (f"{key} = {_toml(value)}\n" for key, value in self.as_table().items())
        return "[[grant]]\n" + "".join(lines)

    @property
    def has_selector(self) -> bool:
        """Whether the labels of a node decide if it is one of ``nodes``."""
        return any(pattern.labels for pattern in self.nodes)

    def has_node(self, node: str, labels: Mapping[str, str]) -> bool:
        """Whether the grant is for this node. ``labels`` are those that were set on the server."""
        return node in self._exact or any(pattern.matches(node, labels) for pattern in self._patterns)


def parse_grants(text: str) -> tuple[Grant, ...]:
    """Parse a TOML file of ``[[grant]]`` tables. Raises ``GrantError``."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise GrantError(f"not TOML: {error}") from None
    return grants_of(document)


def grants_of(document: Mapping[str, Any]) -> tuple[Grant, ...]:
    """Return the grants of a parsed TOML, YAML or JSON document. Raises ``GrantError``."""
    if unknown := document.keys() - {"grant"}:
        raise GrantError(
            f"{str(min(map(str, unknown)))[:80]!r} is unknown here; each grant is a [[grant]] table"
        )
    tables = document.get("grant", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise GrantError("grant is not a list of tables: write [[grant]] before each")
    grants = tuple(map(Grant.parse, tables))
    seen: set[str] = set()
    for grant in grants:
        if grant.id in seen:
            raise GrantError(f"two grants have the id {grant.id}")
        seen.add(grant.id)
    return grants


def format_grants(grants: Iterable[Grant]) -> str:
    """Return the canonical TOML file of ``grants``, which ``parse_grants`` reads."""
    return "\n".join(grant.as_toml() for grant in grants)


_KEYS = ("id", "users", "groups", "verbs", "nodes", "targets", "note")
_VERBS = ", ".join(verb.value for verb in Verb)


def _id(value: object) -> str:
    if not isinstance(value, str):
        raise GrantError('a grant has no id: write, for example, id = "ops-ssh"')
    if not is_grant_id(value):
        rule = "lower-case letters, digits and '.', '_', '-' inside, 64 characters at most"
        raise GrantError(f"{value[:200]!r} is not the id of a grant: {rule}")
    return value


def _note(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NOTE or not (value.isprintable() or not value):
        raise GrantError(f"the note of {where} is not one printable line of at most {MAX_NOTE} characters")
    return value


def _names(value: object, where: str, key: str, check: Any) -> tuple[str, ...]:
    """Return the checked texts of a list, ordered, each once. ``*`` stands alone."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise GrantError(f'{key} of {where} is not a list: write {key} = ["..."]')
    if len(value) > MAX_PATTERNS:
        more = "use a group or a label for more"
        raise GrantError(f"{key} of {where} has {len(value)} items; {MAX_PATTERNS} are allowed, {more}")
    found: set[str] = set()
    for item in value:
        if not isinstance(item, str):
            raise GrantError(f"{key} of {where} has {item!r:.80}, which is not a text in quotes")
        try:
            found.add(check(item))
        except GrantError as error:
            raise GrantError(f"{key} of {where}: {error}") from None
    if EVERYTHING in found and len(found) > 1:
        raise GrantError(f"{key} of {where} has * beside other items; * alone is everything")
    return tuple(sorted(found))


def _user(text: str) -> str:
    if text != EVERYTHING and not is_identity_name(Role.USER, text):
        raise GrantError(why_no_name(Role.USER, text))
    return text


def _group(text: str) -> str:
    if text == EVERYTHING:
        raise GrantError('* is no group; write users = ["*"] for every user')
    if not is_group_name(text):
        raise GrantError(why_no_group(text))
    return text


def _verb(text: str) -> str:
    if text == EVERYTHING or text in {verb.value for verb in Verb}:
        return text
    if text in UNENFORCEABLE:
        raise GrantError(f"{text} cannot be granted: {UNENFORCEABLE[text]}; the verbs are {_VERBS}")
    raise GrantError(f"{text[:80]!r} is not a verb; the verbs are {_VERBS}, and * for all")


def _members(verbs: Iterable[str], nodes: tuple[NodePattern, ...]) -> frozenset[Verb]:
    """Return the verbs that the words stand for. ``*`` on some nodes does not include admin."""
    if EVERYTHING not in verbs:
        return frozenset(map(Verb, verbs))
    return frozenset(Verb) if _is_every_node(nodes) else frozenset(Verb) - {Verb.ADMIN}


def _is_every_node(nodes: tuple[NodePattern, ...]) -> bool:
    return [pattern.name for pattern in nodes] == [EVERYTHING]


def _checked(kind: type[NodePattern | TargetPattern]) -> Any:
    return lambda text: str(kind.parse(text))


def _check_places(grant: Grant, where: str) -> None:
    """Raise ``GrantError`` if a verb needs nodes or targets that are missing, or can never reach one."""
    opening = [verb for verb in grant.verbs if verb.opens_streams]
    if grant.verbs == {Verb.ADMIN}:
        if grant.nodes or grant.targets:
            raise GrantError(f"{where} has nodes or targets, but the verb admin concerns no node")
        return
    if not grant.nodes:
        raise GrantError(f"{where} has no nodes: give names, names with *, label=value, or * for all")
    if Verb.ADMIN in grant.verbs and not _is_every_node(grant.nodes):
        raise GrantError(
            f"{where} has admin, which concerns every node, beside verbs on some; make it two grants"
        )
    if opening and not grant.targets:
        example = 'targets = ["ssh", "22", "10.0.0.5:80"], or * for all'
        raise GrantError(f"{where} has no targets: write, for example, {example}")
    if not opening and grant.targets:
        raise GrantError(f"{where} has targets, but its verbs open nothing; leave targets out")
    if opening == [Verb.HTTP]:
        for target in grant.targets:
            if not target.may_be_service:
                sentence = f"the web entrance opens services by name, so http cannot reach {target}"
                raise GrantError(f"{where}: {sentence}; name a service, or use connect")


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
