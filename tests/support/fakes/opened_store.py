"""A running store, with a clock that the test sets."""

from __future__ import annotations

import datetime
import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from certs.token import Token, make_token
from certs.x509 import CertificateFacts
from tunnel_core.identity import Role, SpiffeId
from tunnel_server.store.certificates import NewCertificate, Origin
from tunnel_server.store.store import FILE, Store, StoreSettings, open_store
from tunnel_server.store.tokens import NewToken, Redemption

DOMAIN = "test.internal"
PIN = bytes(range(32))
DAY = datetime.timedelta(days=1)
_numbers = itertools.count(1)


class Clock:
    def __init__(self) -> None:
        self.now = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)


@asynccontextmanager
async def opened(
    folder: Path, clock: Clock | None = None, settings: StoreSettings | None = None
) -> AsyncIterator[Store]:
    store = open_store(settings or StoreSettings(folder / FILE), clock or Clock())
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.serve)
            try:
                yield store
            finally:
                await store.aclose()


def fresh_token() -> Token:
    return make_token(PIN, hashlib.sha256(str(next(_numbers)).encode()).digest()[:30])


def new_token(node: str = "shop-7", *, pattern: str = "", uses: int = 1, ttl: float = 3600.0) -> NewToken:
    return NewToken(fresh_token(), ttl, "" if pattern else node, pattern, uses)


def redemption(token: Token, node: str = "shop-7", key: str = "k1") -> Redemption:
    return Redemption(token.id, token.digest, node, key, "192.0.2.1")


def certificate(
    name: str = "shop-7",
    origin: Origin = Origin.BY_HAND,
    *,
    role: Role = Role.NODE,
    days: int = 30,
    serial: str = "",
    now: datetime.datetime | None = None,
    pin: bytes = PIN,
    **known: str,
) -> NewCertificate:
    begins = now or Clock().now
    facts = CertificateFacts(
        SpiffeId(DOMAIN, role, name), serial or f"{next(_numbers):x}", begins, begins + days * DAY, "aa" * 32
    )
    return NewCertificate(facts, pin, origin, **known)
