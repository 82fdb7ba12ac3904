"""Actions of an administrator on the store and the authority. Each takes arguments and returns JSON.

The actions are the same over the admin socket of a running server and in a command that opens the store.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import trio

from certs.bundle import split_pem
from certs.ca import AuthorityError
from certs.rotation import RotationStep
from certs.token import ID_BYTES, SECRET_BYTES, format_token, make_token
from certs.x509 import VerifiedCertificate, facts_of, is_signed_by, pin_of
from tunnel_core.humanize import as_iso
from tunnel_core.identity import Role
from tunnel_core.names import NODE_NAME_RULE, is_node_name
from tunnel_core.node_patterns import is_pattern
from tunnel_core.reasons import Reason, Refused
from tunnel_server.admin.access_actions import (
    ACCESS_READS,
    ACCESS_WRITES,
    AccessAction,
    grants_of_user,
)
from tunnel_server.admin.arguments import Arguments, bad
from tunnel_server.admin.ending import ends_nothing, live_part
from tunnel_server.admin.stream_actions import recorded_streams
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.config import ServerConfig
from tunnel_server.events.event_log import event_as_json
from tunnel_server.nodes.registry import Nodes
from tunnel_server.pki.public_addresses import NoNames, addresses, server_names
from tunnel_server.pki.rotation_steps import CertificateInventory, RotationSteps
from tunnel_server.store.audit import AuditKind, AuditLine, AuditQuery
from tunnel_server.store.certificates import by_hand
from tunnel_server.store.revocations import as_json
from tunnel_server.store.store import Store
from tunnel_server.store.tokens import NewToken

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")
DEFAULT_TTL_SECONDS = 24 * 3600
_MAX_TTL_SECONDS = 365 * 24 * 3600
_MAX_USES = 100_000
_MAX_MS = 2**62
_MAX_WHY = 300


@dataclass(frozen=True, slots=True)
class Actions:
    """Actions of an administrator. All raise ``Refused``. ``by`` of an action names the administrator.

    ``on_rotated`` is called after a rotation step has changed files, with the step and whether it was forced.
    ``authority_lock`` guards the authority's files. ``live`` returns the certificates of current sessions and
    streams. ``nodes`` is the registry of a running server, or None without a server.
    """

    config: ServerConfig
    store: Store
    on_rotated: Callable[[RotationStep, bool], None]
    authority_lock: trio.Lock
    live: Callable[[], Sequence[VerifiedCertificate]]
    nodes: Nodes | None

    @classmethod
    def without_server(cls, config: ServerConfig, store: Store) -> Actions:
        """Return the actions of a command that opens the store itself, because no server runs."""
        return cls(config, store, lambda step, forced: None, trio.Lock(), tuple, None)

    # Tokens.

    async def create_token(self, given: Arguments, by: str) -> Json:
        node, pattern = given.text("node", ""), given.text("match", "")
        uses = given.whole("uses", 1, least=1, most=_MAX_USES)
        ttl = given.number("ttl_seconds", DEFAULT_TTL_SECONDS, least=1, most=_MAX_TTL_SECONDS)
        given.done()
        _check_token_subject(node, pattern, uses)
        pin = await _in_thread(RotationSteps(self.config).server_root_pin)
        token = make_token(pin, secrets.token_bytes(ID_BYTES + SECRET_BYTES), node or pattern)
        expires = await self.store.create_token(NewToken(token, ttl, node, pattern, uses), by)
        return {
            "id": token.id,
            "token": format_token(token),
            "node": node or None,
            "match": pattern or None,
            "uses": uses,
            "expires": as_iso(expires, "milliseconds"),
            "servers": self._servers(),
        }

    async def tokens(self, given: Arguments, by: str) -> Json:
        given.done()
        return {"tokens": await self.store.tokens()}

    async def token(self, given: Arguments, by: str) -> Json:
        token_id = given.text("id")
        given.done()
        return {"token": await self.store.token(token_id)}

    async def revoke_token(self, given: Arguments, by: str) -> Json:
        token_id = given.text("id")
        given.done()
        await self.store.revoke_token(token_id, by)
        return {"revoked": token_id}

    def _servers(self) -> list[str]:
        try:
            return list(addresses(server_names(self.config), self.config.https.listen))
        except NoNames as error:
            raise Refused(Reason.INTERNAL_ERROR, str(error)) from None

    # Certificates and revocations.

    async def certificates(self, given: Arguments, by: str) -> Json:
        role, name, ended = given.text("role", ""), given.text("name", ""), given.flag("ended")
        given.done()
        return {"certificates": await self.store.certificates(role=role, name=name, ended=ended)}

    async def record_certificate(self, given: Arguments, by: str) -> Json:
        """Record a certificate that a command issued, before the command writes the bundle."""
        chain, renewable = given.text("chain").encode(), given.flag("renewable")
        given.done()
        try:
            facts, root_pin = facts_of(chain), await _in_thread(lambda: self._root_of(chain))
        except ValueError as error:
            raise bad(f"the chain cannot be read: {error}") from None
        await self.store.record(by_hand(facts, root_pin, by, renewable=renewable))
        is_user = facts.identity.role is Role.USER
        access = {"grants": grants_of_user(self.store, facts.identity.name)} if is_user else {}
        return {"serial": facts.serial, **access}

    def _root_of(self, chain: bytes) -> bytes:
        parts = split_pem(chain)
        for root in RotationSteps(self.config).roots():
            if is_signed_by(parts, root):
                return pin_of(root)
        raise ValueError("it leads to none of this server's roots")

    # Revocations.

    async def revoke_node(self, given: Arguments, by: str) -> Json:
        return await self._revoke(RevocationKind.NODE, given.name(Role.NODE), given, by)

    async def revoke_user(self, given: Arguments, by: str) -> Json:
        return await self._revoke(RevocationKind.USER, given.name(Role.USER), given, by)

    async def revoke_certificate(self, given: Arguments, by: str) -> Json:
        serial = given.serial()
        answer = await self._revoke(RevocationKind.SERIAL, serial, given, by)
        return {**answer, "certificate": await self.store.certificate(serial)}

    async def _revoke(self, kind: RevocationKind, subject: str, given: Arguments, by: str) -> Json:
        """Revoke ``subject``. Without ``force``, raise ``Refused`` for an unknown subject.

        If the subject is already revoked and nothing would end, change nothing.
        """
        why, force = given.text("why", ""), given.flag("force")
        given.done()
        if len(why) > _MAX_WHY:
            raise bad(f"why is longer than {_MAX_WHY} characters")
        ending = await self._preview(kind, subject)
        if not ending["known"] and not force:
            raise await self.store.unknown(kind, subject)
        if ending["revoked"] is not None and ends_nothing(ending):
            return {"revocation": ending["revoked"], "again": True, "ended": ending, "along": []}
        revocation = await self.store.revoke(kind, subject, by, why)
        along = list(revocation.descendants)
        return {"revocation": as_json(revocation), "again": False, "ended": ending, "along": along}

    async def preview_revocation(self, given: Arguments, by: str) -> Json:
        kind = _kind(given.text("kind"))
        subject = _subject(kind, given)
        given.done()
        ending = await self._preview(kind, subject)
        if not ending["known"]:
            ending["unknown"] = (await self.store.unknown(kind, subject)).detail
        return ending

    async def _preview(self, kind: RevocationKind, subject: str) -> Json:
        stored = await self.store.what_ends(kind, subject)
        live = live_part(kind, {subject, *stored["along"]}, self.live(), self.nodes)
        return {**stored, **live, "known": stored["known"] or live["in_use"] > 0}

    async def unrevoke_node(self, given: Arguments, by: str) -> Json:
        return await self._unrevoke(RevocationKind.NODE, given.name(Role.NODE), given, by)

    async def unrevoke_user(self, given: Arguments, by: str) -> Json:
        return await self._unrevoke(RevocationKind.USER, given.name(Role.USER), given, by)

    async def unrevoke_certificate(self, given: Arguments, by: str) -> Json:
        return await self._unrevoke(RevocationKind.SERIAL, given.serial(), given, by)

    async def _unrevoke(self, kind: RevocationKind, subject: str, given: Arguments, by: str) -> Json:
        given.done()
        taken = await self.store.take_back(kind, subject, by)
        ending = await self._preview(kind, subject)
        return {
            "taken_back": as_json(taken.revocation),
            "along": sorted(taken.descendants),
            "still": as_json(taken.still) if taken.still else None,
            "certificates": ending["certificates"],
        }

    async def forget_node(self, given: Arguments, by: str) -> Json:
        name = given.name(Role.NODE)
        given.done()
        if self.nodes is not None:
            self.nodes.require_detached(name)
        await self.store.forget_node(name, by)
        if self.nodes is not None and not self.nodes.is_attached(name):  # It may have attached meanwhile.
            self.nodes.forget(name)
        return {"forgotten": name, "certificates": await self.store.certificates(role="node", name=name)}

    async def revocations(self, given: Arguments, by: str) -> Json:
        given.done()
        return {"revocations": await self.store.revocations()}

    # Audit and events.

    async def audit(self, given: Arguments, by: str) -> Json:
        query = AuditQuery(
            node=given.text("node", ""),
            user=given.text("user", ""),
            kind=_audit_kind(given.text("kind", "")),
            since=given.whole("since_ms", 0, least=0, most=_MAX_MS),
            until=given.whole("until_ms", _MAX_MS, least=0, most=_MAX_MS),
            before=given.whole("before", _MAX_MS, least=0, most=_MAX_MS),
            most=given.whole("most", 100, least=1, most=1000),
        )
        given.done()
        return {"audit": await self.store.audit(query), "dropped": self.store.audit_dropped}

    async def events(self, given: Arguments, by: str) -> Json:
        node = given.text("node", "")
        before = given.whole("before", _MAX_MS, least=0, most=_MAX_MS)
        given.done()
        return {"events": list(map(event_as_json, await self.store.events(node, before=before)))}

    # The authority.

    async def show_authority(self, given: Arguments, by: str) -> Json:
        given.done()
        steps, inventory = RotationSteps(self.config), await self._inventory()
        return await self._with_tokens(await _in_thread(lambda: steps.show(inventory)))

    async def rotate_authority(self, given: Arguments, by: str) -> Json:
        step, force = _step(given.text("step")), given.flag("force")
        root_key = given.text("root_key", "")
        given.done()
        steps, key = RotationSteps(self.config), Path(root_key) if root_key else None
        async with self.authority_lock:
            inventory = await self._inventory()
            await _in_thread(lambda: steps.check(step, inventory, force=force))
            await self._note_step(by, f"{step.value}, forced" if force else step.value)
            try:
                await _in_thread(lambda: steps.take(step, root_key=key))
            except Refused as refused:
                await self._note_step(by, refused.detail, refused.reason)
                raise
        self.on_rotated(step, force)
        return await self.show_authority(Arguments({}), by)

    async def _note_step(self, by: str, detail: str, reason: Reason | None = None) -> None:
        """Write the audit line before the step, so that a failing audit prevents the step."""
        word = reason.word if reason else ""
        await self.store.note(AuditLine(AuditKind.CA_ROTATED, done_by=by, reason=word, detail=detail))

    async def _with_tokens(self, shown: Json) -> Json:
        """Add the open tokens whose pinned root is not the root of the server's current certificate."""
        pin = shown["server_certificate"]["root_pin"]
        stale = [
            token["id"]
            for token in await self.store.tokens()
            if token["state"] == "open" and pin is not None and token["root_pin"] != pin
        ]
        return {**shown, "stale_tokens": stale}

    async def _inventory(self) -> CertificateInventory:
        return CertificateInventory(
            await self.store.certificates_in_use(),
            await self.store.created_at(),
            self.store.wall(),
            self.live(),
        )


Action: TypeAlias = Callable[[Actions, Arguments, str], Awaitable[Json]]


def _on_store(action: AccessAction) -> Action:
    return lambda actions, given, by: action(actions.store, given, by)


READS: dict[str, Action] = {
    **{path: _on_store(action) for path, action in ACCESS_READS.items()},
    "tokens": Actions.tokens,
    "token": Actions.token,
    "certificates": Actions.certificates,
    "revocations": Actions.revocations,
    "revocations/preview": Actions.preview_revocation,
    "audit": Actions.audit,
    "audit/streams": _on_store(recorded_streams),
    "events": Actions.events,
    "ca": Actions.show_authority,
}
"""Actions of GET, by the part of the path below ``/api/v1/admin/``."""

WRITES: dict[str, Action] = {
    **{path: _on_store(action) for path, action in ACCESS_WRITES.items()},
    "tokens/create": Actions.create_token,
    "tokens/revoke": Actions.revoke_token,
    "certificates/record": Actions.record_certificate,
    "certificates/revoke": Actions.revoke_certificate,
    "nodes/revoke": Actions.revoke_node,
    "users/revoke": Actions.revoke_user,
    "certificates/unrevoke": Actions.unrevoke_certificate,
    "nodes/unrevoke": Actions.unrevoke_node,
    "users/unrevoke": Actions.unrevoke_user,
    "nodes/forget": Actions.forget_node,
    "ca/rotate": Actions.rotate_authority,
}
"""Actions of POST, by the part of the path below ``/api/v1/admin/``."""


def _check_token_subject(node: str, pattern: str, uses: int) -> None:
    if bool(node) == bool(pattern):
        options = "--node NAME or --match PATTERN, for example: qanat-server token create --node edge1"
        raise bad(f"a token is for one node, or for all nodes that match a pattern: give either {options}")
    if node and not is_node_name(node):
        raise bad(f"{node[:200]!r} is not a node's name: {NODE_NAME_RULE}")
    if node and uses != 1:
        raise bad("a token for one node has one use; its agent may repeat an interrupted join")
    if pattern and not is_pattern(pattern):
        raise bad(f"{pattern[:200]!r} is not a pattern: a node's name with one to four *, as in shop-*")


def _audit_kind(word: str) -> AuditKind | None:
    if not word:
        return None
    known = [kind.value for kind in AuditKind]
    if word not in known:
        raise bad(f"{word[:80]!r} is not a kind of audit line; the kinds are {', '.join(known)}")
    return AuditKind(word)


def _kind(word: str) -> RevocationKind:
    known = [kind.value for kind in RevocationKind]
    if word not in known:
        raise bad(f"{word[:80]!r} cannot be revoked; the kinds are {', '.join(known)}")
    return RevocationKind(word)


def _subject(kind: RevocationKind, given: Arguments) -> str:
    match kind:
        case RevocationKind.NODE:
            return given.name(Role.NODE, "subject")
        case RevocationKind.USER:
            return given.name(Role.USER, "subject")
        case RevocationKind.SERIAL:
            return given.serial("subject")


def _step(word: str) -> RotationStep:
    known = [step.value for step in RotationStep]
    if word not in known:
        raise bad(f"{word[:80]!r} is not a step of a rotation; the steps are {', '.join(known)}")
    return RotationStep(word)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run ``function``, which reads or writes files, in a thread. Raise its file errors as ``Refused``."""
    try:
        return await trio.to_thread.run_sync(function)
    except AuthorityError as error:
        raise Refused(Reason.AUTHORITY_UNUSABLE, str(error)) from None
    except OSError as error:
        raise Refused(Reason.AUTHORITY_UNUSABLE, f"{error.filename}: {error.strerror}") from None
