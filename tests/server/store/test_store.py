"""Tokens, certificates, revocations, audit and events through the store, as the server uses it."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from certs.token import Token
from certs.x509 import VerifiedCertificate
from tests.support.fakes.credentials import credential_watch
from tests.support.fakes.opened_store import (
    DAY,
    DOMAIN,
    PIN,
    Clock,
    certificate,
    new_token,
    opened,
    redemption,
)
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.node_patterns import is_pattern, matches
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import Revocation
from tunnel_server.auth.revocation_list import RevocationKind as Revokes
from tunnel_server.events.event_log import EventKind, NodeEvent
from tunnel_server.store.audit import AuditKind, AuditLine, AuditQuery
from tunnel_server.store.certificates import Origin
from tunnel_server.store.store import FILE, Store, StoreSettings
from tunnel_server.store.tokens import Redeemed

SHOP = SpiffeId(DOMAIN, Role.NODE, "shop-7")


async def refusal(store: Store, token: Token, node: str = "shop-7", key: str = "k1") -> Reason:
    with pytest.raises(Refused) as caught:
        await store.redeem(redemption(token, node, key))
    return caught.value.reason


# Tokens.


async def test_exactly_as_many_of_a_race_succeed_as_there_are_uses(tmp_path: Path) -> None:
    new = new_token(pattern="shop-*", uses=7)
    won: list[str] = []
    lost: list[Reason] = []

    async def race(node: str) -> None:
        try:
            await store.redeem(redemption(new.token, node))
            won.append(node)
        except Refused as refused:
            lost.append(refused.reason)

    async with opened(tmp_path) as store:
        await store.create_token(new, "ops")
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(race, f"shop-{number}")
        assert len(won) == 7
        assert lost == [Reason.TOKEN_USED_UP] * 33
        assert [token["used"] for token in await store.tokens()] == [7]


async def test_a_join_that_was_broken_off_is_done_again_also_after_a_restart(tmp_path: Path) -> None:
    new = new_token()
    async with opened(tmp_path) as store:
        await store.create_token(new, "ops")
        assert await store.redeem(redemption(new.token)) == Redeemed(new.token.id, again=False)
    async with opened(tmp_path) as store:
        assert await store.redeem(redemption(new.token)) == Redeemed(new.token.id, again=True)
        assert await refusal(store, new.token, key="k2") is Reason.TOKEN_REPLAYED
        assert await refusal(store, new.token, node="shop-8") is Reason.TOKEN_NAME_MISMATCH


async def test_the_list_shows_the_state_of_each_token_and_nothing_secret(tmp_path: Path) -> None:
    clock = Clock()
    news = [
        new_token("spent"),
        new_token("short", ttl=1),
        new_token("gone"),
        new_token(pattern="*-till", uses=3),
    ]
    async with opened(tmp_path, clock) as store:
        for new in news:
            ends = await store.create_token(new, "uid-0")
            assert ends == clock.now + datetime.timedelta(seconds=new.ttl_seconds)
        await store.redeem(redemption(news[0].token, "spent"))
        await store.revoke_token(news[2].token.id, "uid-0")
        await store.revoke_token(news[2].token.id, "uid-0")
        clock.pass_seconds(2)
        listed = await store.tokens()
        assert [(one["node"] or one["match"], one["state"]) for one in listed] == [
            *(("spent", "used_up"), ("short", "expired"), ("gone", "revoked"), ("*-till", "open"))
        ]
        assert await refusal(store, news[1].token, "short") is Reason.TOKEN_EXPIRED
        assert await refusal(store, news[2].token, "gone") is Reason.TOKEN_REVOKED
        with pytest.raises(Refused, match="not_found"):
            await store.revoke_token("a" * 16, "uid-0")
        everything = str(listed) + str(await store.audit(AuditQuery()))
        for new in news:
            assert new.token.secret.hex() not in everything
            assert new.token.digest.hex() not in everything


async def test_refusals_are_in_the_audit_with_their_reason(tmp_path: Path) -> None:
    new = new_token()
    async with opened(tmp_path) as store:
        await store.create_token(new, "uid-0")
        await refusal(store, new.token, "shop-8")
        line = (await store.audit(AuditQuery(kind=AuditKind.REFUSED)))[0]
        assert (line["node"], line["token"], line["reason"], line["source"]) == (
            *("shop-8", new.token.id, "token_name_mismatch", "192.0.2.1"),
        )


@pytest.mark.parametrize(
    ("pattern", "node", "fits"),
    [
        ("shop-*", "shop-7", True),
        ("shop-*", "shop-", True),
        ("shop-*", "shop-7.example.com", False),
        ("shop-*.example.com", "shop-7.example.com", True),
        ("*", "anything", True),
        ("*-till-*", "a-till-b", True),
        ("shop-*", "xshop-7", False),
        ("a.*", "axb", False),
    ],
)
def test_patterns(pattern: str, node: str, fits: bool) -> None:
    assert is_pattern(pattern)
    assert matches(pattern, node) == fits


@pytest.mark.parametrize("text", ["", "shop-7", "**", "shop-[0-9]", "Shop-*", "*" * 9, "a*b*c*d*e*", "*/x"])
def test_invalid_patterns(text: str) -> None:
    assert not is_pattern(text)


@given(st.text("a-.*", max_size=30), st.text("a-.", max_size=30))
def test_any_pattern_is_quick(pattern: str, node: str) -> None:
    if is_pattern(pattern):
        assert matches(pattern, pattern.replace("*", "x"))
        matches(pattern, node)


# Revocations.


async def test_a_revoked_node_is_out_until_a_new_token_lets_one_certificate_in(tmp_path: Path) -> None:
    early, fleet, late = new_token(), new_token(pattern="shop-*", uses=9), new_token()
    async with opened(tmp_path) as store:
        old, heard = certificate(), list[Revocation]()
        store.revoked.subscribe(heard.append)
        await store.record(old)
        await store.create_token(early, "ops")
        assert not store.revoked.covers(SHOP, old.facts.serial)
        made = await store.revoke(Revokes.NODE, "shop-7", "uid-0", "stolen from the van")
        assert heard == [made]
        assert store.revoked.covers(SHOP, old.facts.serial)
        assert store.revoked.covers(SHOP, "a foreign one")
        assert await refusal(store, early.token) is Reason.REVOKED
        await store.create_token(fleet, "ops")
        assert await refusal(store, fleet.token) is Reason.REVOKED
        with pytest.raises(Refused, match="revoked"):
            await store.record(certificate(origin=Origin.RENEWED, previous=old.facts.serial))
        with pytest.raises(Refused, match="revoked"):
            await store.record(certificate(origin=Origin.ENROLLED, token_id=fleet.token.id))

        await store.create_token(late, "ops")
        await store.redeem(redemption(late.token))
        first = certificate(origin=Origin.ENROLLED, token_id=late.token.id)
        await store.record(first)
        renewed = certificate(origin=Origin.RENEWED, previous=first.facts.serial)
        await store.record(renewed)
    async with opened(tmp_path) as store:
        state = [store.revoked.covers(SHOP, one.facts.serial) for one in (old, first, renewed)]
        assert state == [True, False, False]
        listed = {one["serial"]: one["revoked"] for one in await store.certificates(name="shop-7")}
        assert listed == {old.facts.serial: True, first.facts.serial: False, renewed.facts.serial: False}
        await store.revoke(Revokes.NODE, "shop-7", "uid-0")
        assert store.revoked.covers(SHOP, renewed.facts.serial)


async def test_users_and_serials(tmp_path: Path) -> None:
    kim, other = SpiffeId(DOMAIN, Role.USER, "kim"), SpiffeId(DOMAIN, Role.NODE, "kim")
    server = SpiffeId(DOMAIN, Role.SERVER, "main")
    async with opened(tmp_path) as store:
        await store.revoke(Revokes.USER, "kim", "uid-0")
        await store.revoke(Revokes.SERIAL, "beef", "uid-0")
        for identity, serial, out in (
            *((kim, "1", True), (other, "1", False), (server, "1", False)),
            *((other, "beef", True), (server, "beef", True)),
        ):
            assert store.revoked.covers(identity, serial) == out
        ends = datetime.datetime.max.replace(tzinfo=datetime.UTC)
        watch = credential_watch(store.revoked, Clock())
        with pytest.raises(Refused) as caught:
            watch.require(VerifiedCertificate(kim, "1", ends))
        assert caught.value.reason is Reason.REVOKED
        watch.require(VerifiedCertificate(other, "1", ends))
        again = certificate("kim", role=Role.USER)
        await store.record(again)
        assert not store.revoked.covers(kim, again.facts.serial)
        assert [(one["kind"], one["subject"]) for one in await store.revocations()] == [
            *(("user", "kim"), ("serial", "beef"))
        ]


async def test_certificates_in_use(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        await store.record(certificate("a", days=5))
        await store.record(certificate("a", days=30, pin=bytes(32)))
        await store.record(certificate("short", days=5))
        for _ in range(2):
            await store.record(certificate("kim", role=Role.USER, days=365))
        await store.record(certificate("out", days=30))
        await store.revoke(Revokes.NODE, "out", "uid-0")
        clock.now += 10 * DAY
        alive = await store.certificates_in_use()
        assert [(str(one), one.root_pin) for one in alive] == [
            *(("node a", "00" * 32), ("user kim", PIN.hex()), ("user kim", PIN.hex()))
        ]
        assert [one["name"] for one in await store.certificates(role="node", ended=True)] == [
            *("a", "a", "short", "out")
        ]
        assert [one["name"] for one in await store.certificates(role="node")] == ["a", "out"]


async def test_a_node_is_known_from_its_first_certificate_on(tmp_path: Path) -> None:
    heard: list[str] = []
    async with opened(tmp_path) as store:
        store.subscribe_nodes(heard.append)
        await store.record(certificate("a"))
        await store.record(certificate("kim", role=Role.USER))
        assert heard == ["a"]
        assert [(node.name, node.last_seen_at) for node in await store.known_nodes()] == [("a", None)]


async def test_tokens_and_certificates_that_ended_long_ago_are_removed(tmp_path: Path) -> None:
    clock, new = Clock(), new_token()
    async with opened(tmp_path, clock) as store:
        await store.create_token(new, "ops")
        await store.redeem(redemption(new.token))
        await store.record(certificate(days=1))
        clock.now += 29 * DAY
        assert await store.prune() == 0
        clock.now += 2 * DAY
        assert await store.prune() == 1
        assert await store.tokens() == []
        clock.now += 70 * DAY
        assert [node.name for node in await store.known_nodes()] == ["shop-7"]
        assert await store.prune() == 2  # with its last certificate the node is forgotten, too
        assert await store.certificates(ended=True) == []
        assert await store.known_nodes() == []
        assert await refusal(store, new.token) is Reason.TOKEN_WRONG


# Audit and events.


async def test_the_audit_is_asked_by_node_user_kind_and_time(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        for kind, node, user in (
            *((AuditKind.ENROLLED, "a", ""), (AuditKind.RENEWED, "a", ""), (AuditKind.RENEWED, "b", "")),
            (AuditKind.REVOKED, "", "kim"),
        ):
            await store.note(AuditLine(kind, node=node, user=user))
            clock.pass_seconds(10)
        begin = int(Clock().now.timestamp() * 1000)
        for question, numbers in (
            (AuditQuery(), [1, 2, 3, 4]),
            (AuditQuery(node="a"), [1, 2]),
            (AuditQuery(user="kim"), [4]),
            (AuditQuery(kind=AuditKind.RENEWED), [2, 3]),
            (AuditQuery(since=begin + 10_000, until=begin + 30_000), [2, 3]),
            (AuditQuery(before=3), [1, 2]),
            (AuditQuery(most=2), [3, 4]),
            (AuditQuery(node="a'; DROP TABLE audit; --"), []),
        ):
            assert [line["number"] for line in await store.audit(question)] == numbers


async def test_events_are_kept_beyond_a_restart_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel_server.store.events.KEEP_EVENTS", 3)
    now = Clock().now
    kept = [
        NodeEvent(number, now, EventKind.LOST, f"n{number % 2}", "s", Reason.PING_TIMEOUT, "late")
        for number in range(1, 6)
    ]
    async with opened(tmp_path) as store:
        await store.add_events(kept)
        await store.add_events(kept[3:])
        await store.prune()
    async with opened(tmp_path) as store:
        assert await store.events() == kept[2:]
        assert await store.events("n1") == [kept[2], kept[4]]
        assert await store.events(before=5) == kept[2:4]


async def test_a_probe_asks_the_disk_and_changes_nothing(tmp_path: Path) -> None:
    log = tmp_path / f"{FILE}-wal"
    async with opened(tmp_path) as store:
        made, before = await store.created_at(), log.stat().st_size
        await store.probe()
        assert log.stat().st_size > before, "SQLite wrote nothing, so a full disk would go unnoticed"
        assert await store.created_at() == made


async def test_a_node_that_is_never_quiet_pushes_out_its_own_stored_events_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel_server.store.events.KEEP_EVENTS_OF_NODE", 2)
    now = Clock().now
    kinds = [EventKind.ATTACHED, EventKind.TAKEN_OVER] * 5
    kept = [NodeEvent(1, now, EventKind.ATTACHED, "edge1", "s")]
    kept += [NodeEvent(2 + number, now, kind, "rogue", "s") for number, kind in enumerate(kinds)]
    async with opened(tmp_path) as store:
        for event in kept:
            await store.add_events([event])
        assert [event.id for event in await store.events()] == [1, 8, 9, 10, 11]


def _small(tmp_path: Path, lines: int) -> StoreSettings:
    return StoreSettings(tmp_path / FILE, audit_keep_lines=lines)


async def _fill(store: Store, *lines: AuditLine) -> list[int]:
    for line in lines:
        store.note_nowait(line)
        await trio.lowlevel.checkpoint()
    while await store.prune():
        pass
    return [line["number"] for line in await store.audit(AuditQuery())]


async def test_a_node_has_a_share_of_the_audit_and_pushes_out_nothing_else(tmp_path: Path) -> None:
    noise = [AuditLine(AuditKind.TAKEOVER, node="rogue")] * 50
    rest = [AuditLine(AuditKind.RENEWED, node="edge1"), AuditLine(AuditKind.RENEWED, node="rogue")]
    async with opened(tmp_path, settings=_small(tmp_path, 1000)) as store:  # a share of 10
        assert await _fill(store, *rest, *noise) == [1, 2, *range(43, 53)]


async def test_a_user_has_a_share_of_the_audit_too(tmp_path: Path) -> None:
    lines = [AuditLine(AuditKind.REFUSED, user="kim"), *[AuditLine(AuditKind.REFUSED, user="rogue")] * 50]
    async with opened(tmp_path, settings=_small(tmp_path, 1000)) as store:
        assert await _fill(store, *lines) == [1, *range(42, 52)]


async def test_acts_of_administrators_are_replaced_by_later_acts_only(tmp_path: Path) -> None:
    acts = [AuditLine(AuditKind.REVOKED, node="edge1"), AuditLine(AuditKind.TOKEN_CREATED)]
    noise = [AuditLine(AuditKind.TAKEOVER, node=f"n{number}") for number in range(50)]
    async with opened(tmp_path, settings=_small(tmp_path, 10)) as store:
        assert await _fill(store, *acts, *noise) == [1, 2, *range(45, 53)]
        assert await _fill(store, *[acts[1]] * 12) == list(range(55, 65))


async def test_acts_leave_with_their_age(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock, _small(tmp_path, 10)) as store:
        await store.note(AuditLine(AuditKind.REVOKED, node="edge1"))
        clock.now += 401 * DAY
        assert await _fill(store, AuditLine(AuditKind.TAKEOVER, node="a")) == [2]
