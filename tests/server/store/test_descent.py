"""Renewals of a certificate: what is revoked with it, how long they are valid, and what the store keeps."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path

import pytest

from certs.x509 import VerifiedCertificate
from tests.support.fakes.credentials import credential_watch
from tests.support.fakes.opened_store import DAY, DOMAIN, Clock, certificate, new_token, opened, redemption
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import RevocationKind as Revokes
from tunnel_server.store.audit import AuditKind, AuditQuery
from tunnel_server.store.certificates import NewCertificate, Origin, by_hand
from tunnel_server.store.database import open_database
from tunnel_server.store.schema import STEPS
from tunnel_server.store.store import FILE, Store

KIM = SpiffeId(DOMAIN, Role.USER, "kim")
HOUR = datetime.timedelta(hours=1)


def of_kim(serial: str, previous: str = "", *, days: int = 30, clock: Clock | None = None) -> NewCertificate:
    origin = Origin.RENEWED if previous else Origin.BY_HAND
    now = clock.now if clock else None
    return certificate("kim", origin, role=Role.USER, serial=serial, days=days, previous=previous, now=now)


async def family(store: Store) -> None:
    """Record a, its renewals b1 and b2, c renewed from b1, and the unrelated d."""
    for serial, previous in (("a", ""), ("b1", "a"), ("b2", "a"), ("c", "b1"), ("d", "")):
        await store.record(of_kim(serial, previous))


def shut_out(store: Store) -> list[str]:
    return [serial for serial in ("a", "b1", "b2", "c", "d") if store.revoked.covers(KIM, serial)]


@pytest.mark.parametrize(
    ("revoked", "out"), [("a", ["a", "b1", "b2", "c"]), ("b1", ["b1", "c"]), ("c", ["c"])]
)
async def test_a_revoked_serial_takes_its_renewals_along(
    tmp_path: Path, revoked: str, out: list[str]
) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        await family(store)
        clock.pass_seconds(1)
        made = await store.revoke(Revokes.SERIAL, revoked, "uid-0", "in a backup")
        assert [revoked, *made.descendants] == out
        assert shut_out(store) == out
        listed = [one["serial"] for one in await store.certificates(name="kim") if one["revoked"]]
        assert listed == out
        lines = await store.audit(AuditQuery(kind=AuditKind.REVOKED))
        assert [(line["serial"], line["user"]) for line in lines] == [(serial, "kim") for serial in out]
        with pytest.raises(Refused) as caught:
            await store.record(of_kim("e", out[-1]))
        assert caught.value.reason is Reason.REVOKED
    async with opened(tmp_path) as store:
        assert shut_out(store) == out
        taken = await store.take_back(Revokes.SERIAL, revoked, "uid-0")
        assert sorted(taken.descendants) == out[1:]
        assert shut_out(store) == []
    async with opened(tmp_path) as store:
        assert shut_out(store) == []


async def test_a_certificate_revoked_by_serial_stays_revoked_when_its_origin_is_unrevoked(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        await family(store)
        clock.pass_seconds(1)
        await store.revoke(Revokes.SERIAL, "c", "uid-0")
        await store.revoke(Revokes.SERIAL, "a", "uid-0")
        await store.take_back(Revokes.SERIAL, "a", "uid-0")
        assert shut_out(store) == ["c"]
    async with opened(tmp_path) as store:
        assert shut_out(store) == ["c"]


async def test_access_by_a_renewal_ends_with_its_origin(tmp_path: Path) -> None:
    ended: list[str] = []
    async with opened(tmp_path) as store:
        await family(store)
        watch = credential_watch(store.revoked, Clock())
        ends = datetime.datetime.max.replace(tzinfo=datetime.UTC)
        for serial in ("c", "d"):
            watch.register(
                VerifiedCertificate(KIM, serial, ends), lambda refused: ended.append(refused.detail)
            )
        await store.revoke(Revokes.SERIAL, "a", "uid-0")
    assert len(ended) == 1
    assert "the certificate c of user kim" in ended[0]


async def test_the_text_before_a_revocation_names_the_renewals(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await family(store)
        ending = await store.what_ends(Revokes.SERIAL, "a")
        assert [one["serial"] for one in ending["certificates"]] == ["a", "b1", "b2", "c"]
        assert ending["along"] == ["b1", "b2", "c"]
        assert [one["renewed_from"] for one in ending["certificates"]] == [None, "a", "a", "b1"]


async def test_a_foreign_certificate_takes_its_renewals_along(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.record(of_kim("b", "foreign"))
        assert (await store.what_ends(Revokes.SERIAL, "foreign"))["known"]
        assert (await store.revoke(Revokes.SERIAL, "foreign", "uid-0")).descendants == ("b",)


async def test_a_chain_stays_connected_when_rows_in_its_middle_are_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        await store.record(of_kim("first", days=3650))
        previous = "first"
        for number in range(200):
            await store.record(of_kim(f"{number:x}f", previous, days=1, clock=clock))
            previous = f"{number:x}f"
            clock.now += DAY / 2
        while await store.prune():
            pass
        kept = await store.certificates(name="kim", ended=True)
        assert len(kept) == 1 + 182
        assert kept[1]["renewed_from"] == "first"
        descendants = (await store.revoke(Revokes.SERIAL, "first", "uid-0")).descendants
        assert descendants == ("c5f", "c6f", "c7f")  # those that are valid, and one that ended within a day


# How long a renewal may hold.


async def test_renewals_hold_as_long_as_was_given_by_hand(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        facts = of_kim("a", days=1).facts
        await store.record(by_hand(facts, bytes(32), "uid-0"))
        assert await store.renewal_seconds("a", unknown=7.0) == (DAY - HOUR).total_seconds()
        renewable = of_kim("b", days=1).facts
        await store.record(by_hand(renewable, bytes(32), "uid-0", renewable=True))
        assert await store.renewal_seconds("b", unknown=7.0) is None
        assert await store.renewal_seconds("c", unknown=7.0) == 7.0


def test_an_old_store_bounds_what_was_given_by_hand_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with contextlib.closing(open_database(path, steps=STEPS[:2])) as connection:
        for serial, origin in (("a", "by_hand"), ("b", "enrolled"), ("c", "renewed")):
            connection.execute(
                "INSERT INTO certificates VALUES (?, 'user', 'kim', '', '', 0, 5000, 1000, ?, '', NULL)",
                (serial, origin),
            )
        connection.execute("INSERT INTO revocations VALUES (1, 'serial', 'a', 1, '', '', 0)")
    with contextlib.closing(open_database(path)) as connection:
        rows = connection.execute("SELECT serial, previous, renewal_seconds FROM certificates").fetchall()
        assert list(map(tuple, rows)) == [("a", "", 4.0), ("b", "", None), ("c", "", None)]
        assert connection.execute("SELECT follows FROM revocations").fetchone()[0] is None


async def test_renewals_of_an_old_store_are_named_as_perhaps_along(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.record(of_kim("a"))
        await store.record(certificate("kim", Origin.RENEWED, role=Role.USER, serial="b"))
        ending = await store.what_ends(Revokes.SERIAL, "a")
        assert (ending["along"], ending["perhaps_along"]) == ([], ["b"])


# Tokens of a node that was revoked.


async def test_a_token_is_revoked_with_its_node_and_open_again_when_that_is_taken_back(
    tmp_path: Path,
) -> None:
    old, fleet, late = new_token(), new_token(pattern="shop-*", uses=2), new_token()
    async with opened(tmp_path) as store:
        await store.create_token(old, "ops")
        await store.create_token(fleet, "ops")
        await store.revoke(Revokes.NODE, "shop-7", "ops")
        await store.create_token(late, "ops")
        assert [one["state"] for one in await store.tokens()] == ["revoked", "open", "open"]
        assert [one["revoked_with_node"] for one in await store.tokens()] == [True, False, False]
        await store.take_back(Revokes.NODE, "shop-7", "ops")
        assert [one["state"] for one in await store.tokens()] == ["open"] * 3


async def test_a_token_is_checked_without_being_used(tmp_path: Path) -> None:
    new = new_token()
    async with opened(tmp_path) as store:
        await store.create_token(new, "ops")
        await store.check_token(redemption(new.token))
        assert [one["used"] for one in await store.tokens()] == [0]
        await store.redeem(redemption(new.token))
        await store.check_token(redemption(new.token))
        with pytest.raises(Refused) as caught:
            await store.check_token(redemption(new.token, key="k2"))
        assert caught.value.reason is Reason.TOKEN_REPLAYED
        assert not await store.audit(AuditQuery(kind=AuditKind.REFUSED))
