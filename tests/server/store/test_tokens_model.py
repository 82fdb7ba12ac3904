"""Tokens and revocations of nodes against a slow and plain model, over every possible order of events."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from certs.token import Token
from tests.support.fakes.opened_store import certificate, fresh_token
from tunnel_core.node_patterns import matches
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.store import certificates, revocations, tokens
from tunnel_server.store.certificates import Origin, Recorded
from tunnel_server.store.database import open_database
from tunnel_server.store.tokens import NewToken, Redeemed, Redemption
from tunnel_server.store.transaction import Transaction

NODES = ("shop-1", "shop-2", "till")
KEYS = ("k1", "k2")


@dataclass(eq=False)
class Made:
    """A token as the model knows it."""

    token: Token
    node: str
    pattern: str
    uses: int
    made: int
    expires: int
    revoked: bool = False
    used: dict[str, str] = field(default_factory=dict)

    def is_for(self, node: str) -> bool:
        return node == self.node if self.node else matches(self.pattern, node)


@dataclass(eq=False)
class Given:
    """A certificate as the model knows it."""

    node: str
    serial: str
    made: int


class TokensAndRevocations(RuleBasedStateMachine):
    made = Bundle("made")
    given_out = Bundle("given_out")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.connection = open_database(self.folder / "s.db")
        self.connection.execute("PRAGMA synchronous = OFF")
        self.memory = revocations.load(self.connection)
        self.now = 1_000_000
        self.step = 0  # the order of events, independent of the clock
        self.revoked: dict[str, int] = {}
        self.all_given: list[Given] = []

    def teardown(self) -> None:
        self.connection.close()
        shutil.rmtree(self.folder)

    def transaction(self) -> Transaction:
        return Transaction(self.connection, self.now, must_audit=True)

    @rule(seconds=st.integers(-50, 50))
    def time_passes_or_the_clock_is_set(self, seconds: int) -> None:
        self.now += seconds * 1000

    @rule(
        target=made,
        whom=st.sampled_from([*NODES, "shop-*", "*"]),
        uses=st.integers(1, 2),
        ttl=st.integers(1, 100),
    )
    def create(self, whom: str, uses: int, ttl: int) -> Made:
        token, is_pattern = fresh_token(), "*" in whom
        node, pattern = ("", whom) if is_pattern else (whom, "")
        expires = tokens.create(self.transaction(), NewToken(token, ttl, node, pattern, uses), "ops")
        self.step += 1
        assert expires == self.now + ttl * 1000
        return Made(token, node, pattern, uses, self.step, expires)

    @rule(one=made)
    def revoke_token(self, one: Made) -> None:
        tokens.revoke(self.transaction(), one.token.id, "ops")
        one.revoked = True

    @rule(node=st.sampled_from(NODES))
    def revoke_node(self, node: str) -> None:
        self.memory.put(revocations.revoke(self.transaction(), RevocationKind.NODE, node, "ops", "lost"))
        self.step += 1
        self.revoked[node] = self.step

    @rule(one=made, node=st.sampled_from(NODES), key=st.sampled_from(KEYS))
    def redeem(self, one: Made, node: str, key: str) -> None:
        asked = Redemption(one.token.id, one.token.digest, node, key)
        found = tokens.redeem(self.transaction(), asked)
        wanted = self.wanted(one, node, key)
        if isinstance(wanted, Reason):
            assert isinstance(found, Refused)
            assert found.reason is wanted
        else:
            assert found == Redeemed(one.token.id, again=wanted)
            one.used[node] = key

    def wanted(self, one: Made, node: str, key: str) -> Reason | bool:
        if one.revoked:
            return Reason.TOKEN_REVOKED
        if self.now >= one.expires:
            return Reason.TOKEN_EXPIRED
        if not one.is_for(node):
            return Reason.TOKEN_NAME_MISMATCH
        if not self.may_readmit(one, node):
            return Reason.REVOKED
        if node in one.used:
            return True if one.used[node] == key else Reason.TOKEN_REPLAYED
        return Reason.TOKEN_USED_UP if len(one.used) >= one.uses else False

    def may_readmit(self, one: Made, node: str) -> bool:
        return node not in self.revoked or (one.node == node and one.made > self.revoked[node])

    @rule(one=made, node=st.sampled_from(NODES))
    def wrong_secret(self, one: Made, node: str) -> None:
        asked = Redemption(one.token.id, bytes(32), node, "k1")
        found = tokens.redeem(self.transaction(), asked)
        assert isinstance(found, Refused)
        assert found.reason is Reason.TOKEN_WRONG

    @rule(target=given_out, one=made, node=st.sampled_from(NODES))
    def enrolment_is_recorded(self, one: Made, node: str) -> Given:
        new = certificate(node, Origin.ENROLLED, token_id=one.token.id)
        allowed = not one.revoked and self.may_readmit(one, node)
        return self.record(new, allowed)

    @rule(target=given_out, previous=given_out)
    def renewal_is_recorded(self, previous: Given) -> Given:
        new = certificate(previous.node, Origin.RENEWED, previous=previous.serial)
        return self.record(new, not self.is_out(previous))

    @rule(target=given_out, node=st.sampled_from(NODES))
    def issued_by_hand(self, node: str) -> Given:
        return self.record(certificate(node), True)

    def record(self, new: certificates.NewCertificate, allowed: bool) -> Given:
        found = certificates.record(self.transaction(), new)
        assert isinstance(found, Recorded) == allowed
        self.step += 1
        identity, serial = new.facts.identity, new.facts.serial
        one = Given(identity.name, serial, self.step if allowed else -1)
        if isinstance(found, Recorded) and found.readmits:
            self.memory.readmit(identity, serial)
        self.all_given.append(one)
        return one

    def is_out(self, one: Given) -> bool:
        """A certificate that was never recorded counts as a foreign one of that name."""
        return one.node in self.revoked and one.made < self.revoked[one.node]

    @invariant()
    def memory_tables_and_model_agree(self) -> None:
        reloaded = revocations.load(self.connection)
        for one in self.all_given:
            identity = certificate(one.node).facts.identity
            out = self.is_out(one)
            assert self.memory.covers(identity, one.serial) == out
            assert reloaded.covers(identity, one.serial) == out
            assert revocations.is_covered(self.connection, RevocationKind.NODE, one.node, one.serial) == out


TestTokensAndRevocations = TokensAndRevocations.TestCase
TestTokensAndRevocations.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
