"""Sessions and streams end when their certificate is revoked, ends, or loses its root, and only then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing

from certs.x509 import IdentityError, VerifiedCertificate
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.credential_watch import ALLOWANCE, CredentialEnded, CredentialWatch
from tunnel_server.auth.revocation_list import Revocation, RevocationKind, RevocationList, refusal

START = datetime(2026, 11, 26, tzinfo=UTC)


class Watched:
    """A ``CredentialWatch`` whose wall clock follows trio's, and the certificates that it has ended."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.set_ahead = timedelta()
        self.began = trio.current_time()
        self.told: list[CredentialEnded] = []
        self.revoked = RevocationList()
        self.watch = CredentialWatch(self.revoked, self.wall, self.told.append)
        self.gone: list[tuple[str, Reason]] = []
        nursery.start_soon(self.watch.watch)

    def wall(self) -> datetime:
        return START + timedelta(seconds=trio.current_time() - self.began) + self.set_ahead

    def proven(
        self,
        name: str,
        serial: str = "a1",
        *,
        role: Role = Role.NODE,
        seconds: float = 1e6,
        key: bytes = b"k",
    ) -> VerifiedCertificate:
        return VerifiedCertificate(
            SpiffeId("test.internal", role, name), serial, self.wall() + timedelta(seconds=seconds), key
        )

    def enter(self, proven: VerifiedCertificate) -> object:
        def end(why: Refused) -> None:
            self.gone.append((proven.identity.name, why.reason))

        return self.watch.register(proven, end)

    def revoke(self, kind: RevocationKind, subject: str) -> None:
        self.revoked.put(Revocation(1, kind, subject, 0, "uid-0", ""))


@pytest.fixture
async def watched(nursery: trio.Nursery) -> Watched:
    return Watched(nursery)


async def test_a_revocation_ends_at_once_what_it_names_and_spares_the_rest(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    for proven in (
        *(watched.proven("shop-1", "a1"), watched.proven("shop-1", "a2"), watched.proven("shop-2", "a3")),
        *(watched.proven("shop-1", "a4", role=Role.USER), watched.proven("shop-1", "a1")),
    ):
        watched.enter(proven)
    watched.revoke(RevocationKind.SERIAL, "a3")
    assert watched.gone == [("shop-2", Reason.REVOKED)]
    watched.revoke(RevocationKind.NODE, "shop-1")
    assert watched.gone[1:] == [("shop-1", Reason.REVOKED)] * 3  # and the user of that name stays
    assert [(one.certificate.serial, one.count) for one in watched.told] == [("a3", 1), ("a1", 2), ("a2", 1)]


async def test_no_revoked_caller_is_registered(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    proven = watched.proven("shop-1")
    watched.watch.require(proven)
    watched.watch.require(None)
    watched.revoke(RevocationKind.NODE, "shop-1")
    with pytest.raises(IdentityError) as caught:
        watched.watch.require(proven)
    refused = caught.value
    assert (refused.reason, refused.serial) == (Reason.REVOKED, "a1")
    assert refused.identity == proven.identity


async def test_an_expired_certificate_ends_what_depends_on_it(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    watched.enter(watched.proven("shop-1", seconds=300))
    watched.enter(watched.proven("shop-2", seconds=100))
    await trio.sleep(100 + ALLOWANCE.total_seconds() - 0.1)
    assert watched.gone == []
    await trio.sleep(0.2)
    assert watched.gone == [("shop-2", Reason.CERTIFICATE_EXPIRED)]
    with pytest.raises(Refused, match="ended at 2026-11-26 00:01:"):
        watched.watch.require(watched.proven("shop-2", seconds=-5.3))
    await trio.sleep(200)
    assert watched.gone[1:] == [("shop-1", Reason.CERTIFICATE_EXPIRED)]


async def test_a_session_with_a_newer_certificate_continues(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    entry = watched.watch.register(watched.proven("shop-1", "a1", seconds=100), watched.gone.append)  # type: ignore[arg-type]
    await trio.sleep(90)
    entry.renew(watched.proven("shop-1", "a2", seconds=100))
    await trio.sleep(50)
    watched.revoke(RevocationKind.SERIAL, "a1")  # the old one: nothing depends on it any more
    assert watched.gone == []
    await trio.sleep(60)
    assert len(watched.gone) == 1


async def test_a_clock_that_is_set_ahead_is_noticed_within_a_minute(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    watched.enter(watched.proven("shop-1", seconds=1e6))
    await trio.sleep(10)
    watched.set_ahead = timedelta(seconds=1e6)
    await trio.sleep(60)
    assert watched.gone == [("shop-1", Reason.CERTIFICATE_EXPIRED)]


async def test_a_retired_root_takes_its_certificates_along(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    watched.enter(watched.proven("shop-1", key=b"old"))
    watched.enter(watched.proven("shop-2", key=b"new"))
    watched.enter(watched.proven("shop-3", key=b""))
    watched.watch.retire(frozenset({b"old", b""}))
    assert watched.gone == [("shop-1", Reason.ROOT_RETIRED)]
    with pytest.raises(Refused, match="a root that was retired"):
        watched.watch.require(watched.proven("shop-1", key=b"old"))


async def test_what_left_by_itself_is_not_ended_again(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    proven = watched.proven("shop-1")
    entry = watched.watch.register(proven, watched.gone.append)  # type: ignore[arg-type]
    entry.remove()
    entry.remove()
    with (
        watched.watch.registered(proven, watched.gone.append),
        watched.watch.registered(None, watched.gone.append),
    ):  # type: ignore[arg-type]
        pass
    watched.revoke(RevocationKind.NODE, "shop-1")
    assert watched.gone == watched.told == []


async def test_an_end_may_take_others_along(watched: Watched, autojump_clock: trio.testing.MockClock) -> None:
    proven = watched.proven("shop-1")
    second = watched.watch.register(proven, watched.gone.append)  # type: ignore[arg-type]
    watched.watch.forget(second)
    entries = [watched.watch.register(proven, lambda _: entries[1].remove())]
    entries.append(second := watched.watch.register(proven, watched.gone.append))  # type: ignore[arg-type]
    watched.revoke(RevocationKind.NODE, "shop-1")
    assert watched.gone == []
    assert watched.told[0].count == 1


async def test_a_block_is_cancelled_with_the_reason(
    watched: Watched, autojump_clock: trio.testing.MockClock
) -> None:
    proven = watched.proven("kim", role=Role.USER)

    async def revoke() -> None:
        await trio.sleep(1)
        watched.revoke(RevocationKind.USER, "kim")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(revoke)
        with pytest.raises(Refused) as caught, watched.watch.cancel_when_revoked(proven):
            await trio.sleep(1000)
    assert caught.value.reason is Reason.REVOKED
    with watched.watch.cancel_when_revoked(None):
        await trio.sleep(1)
    with watched.watch.cancel_when_revoked(watched.proven("lee", role=Role.USER)):
        await trio.sleep(1)


def test_a_revoked_user_gets_the_next_step_and_a_node_only_the_reason() -> None:
    output = {
        role: str(refusal(SpiffeId("qanat.internal", role, "kim"), "a1")) for role in (Role.USER, Role.NODE)
    }
    assert output[Role.USER].endswith("on the server: qanat-server issue user kim, or user unrevoke kim")
    assert output[Role.NODE].endswith("was revoked")
