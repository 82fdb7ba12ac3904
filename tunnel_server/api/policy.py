"""``/api/v1/policy?user=&verb=&node=&target=``: whether a user may do something, and which grant decides.

A user may ask about the user itself, and gets the id and the verbs of the grant: a whole grant names other
users, groups, nodes and targets. A question about another user needs the verb admin, and its answer has the
whole grant. The answer counts the groups of the store; those of the caller's login count for the caller.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from tunnel_core.identity import Role, is_identity_name, why_no_name
from tunnel_core.names import LOOPBACK, Target
from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.access import Access
from tunnel_server.access.policy import AccessRequest, Decision
from tunnel_server.auth.grants import Grant, Verb
from tunnel_server.auth.users import Administrator, User
from tunnel_server.nodes.registry import Nodes

PATH = "/api/v1/policy"
_PARAMETERS = ("user", "verb", "node", "target")
_NO_GROUPS: frozenset[str] = frozenset()


class PolicyQuestion(NamedTuple):
    """A question of the API. ``node`` may be an alias; ``target`` is None for verbs that open no stream."""

    user: str
    verb: Verb
    node: str
    target: Target | None


def parse_question(query: str) -> PolicyQuestion:
    """Parse the part of the URL after ``?``. Raises ``Refused``."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=2 * len(_PARAMETERS))
    except ValueError:
        raise _bad("too many parameters") from None
    given = dict(pairs)
    if unknown := given.keys() - set(_PARAMETERS):
        raise _bad(f"{min(unknown)[:80]!r} is not a parameter; the parameters are {', '.join(_PARAMETERS)}")
    if len(given) != len(pairs):
        raise _bad("a parameter comes twice")
    user, verb = given.get("user", ""), _verb(given.get("verb", ""))
    if not is_identity_name(Role.USER, user):
        raise _bad(why_no_name(Role.USER, user))
    node, target = given.get("node", ""), given.get("target", "")
    if (verb is Verb.ADMIN) == bool(node):
        raise _bad(f"the verb {verb.value} {'concerns no node' if node else 'needs a node'}")
    if verb.opens_streams != bool(target):
        raise _bad(f"the verb {verb.value} {'opens no target' if target else 'needs a target'}")
    return PolicyQuestion(user, verb, node[:253], _target(target) if target else None)


def _verb(word: str) -> Verb:
    words = [verb.value for verb in Verb]
    if word not in words:
        raise _bad(f"{word[:80]!r} is not a verb; the verbs are {', '.join(words)}")
    return Verb(word)


def _target(text: str) -> Target:
    is_port = text.isascii() and text.isdigit()
    try:
        return Target.parse(f"{LOOPBACK}:{text}" if is_port else text)
    except ValueError as error:
        raise _bad(f"target: {error}") from None


def _bad(sentence: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, sentence)


def answer(access: Access, nodes: Nodes, caller: User, question: PolicyQuestion) -> dict[str, Any]:
    """Return the decision as JSON. Raises ``Refused`` for a caller who may not ask about this user."""
    is_own = caller.name == question.user and not isinstance(caller, Administrator)
    if not is_own and not isinstance(caller, Administrator):
        access.require(caller, Verb.ADMIN)
    shown = _as_summary if is_own and not access.may(caller, Verb.ADMIN, "") else Grant.as_table
    node = (nodes.name_of(question.node) or question.node) if question.node else ""
    groups = caller.groups if is_own else _NO_GROUPS
    request = AccessRequest(question.user, groups, question.verb, node, question.target)
    decision = access.index.decide(request)
    return {
        "allowed": decision.grant is not None,
        "user": question.user,
        "verb": question.verb.value,
        "node": node or None,
        "target": str(question.target) if question.target else None,
        "grant": shown(decision.grant) if decision.grant else None,
        "nearest": shown(decision.nearest) if decision.nearest else None,
        "detail": _sentence(request, decision),
    }


def _as_summary(grant: Grant) -> dict[str, Any]:
    """Return what a user without the verb admin learns about a grant."""
    table = grant.as_table()
    return {key: table[key] for key in ("id", "verbs")}


def _sentence(request: AccessRequest, decision: Decision) -> str:
    if decision.grant is None:
        return decision.refusal
    return f"grant {decision.grant.id} allows user {request.user} to {request.wish}"
