"""The first contact: from a token's pin to a server that is proven, before anything secret is said."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import trio

from certs.token import Token
from tunnel_agent.certificate.est_client import JoinPage, cacerts, join_page
from tunnel_agent.certificate.retry import retry_while_busy
from tunnel_agent.certificate.trust import (
    pinned_root,
    roots_among,
    trusting_at_any_time,
    unverified_context,
    verifying_context,
)
from tunnel_agent.checks import CheckFailed, CheckStep
from tunnel_agent.network.clock_check import compare_clocks
from tunnel_agent.network.server_path import ServerPath, agents_port
from tunnel_core.names import join_host_port
from tunnel_core.reasons import Refused

T = TypeVar("T")


class Contact:
    """Steps in the order of ``steps``; each leaves what the next needs."""

    def __init__(
        self,
        way: ServerPath,
        token: Token,
        way_to: Callable[[str], ServerPath],
        now: Callable[[], datetime],
    ) -> None:
        """``way`` leads to the HTTPS listener, ``way_to(host:port)`` to one for agents."""
        self.way = way
        self.token = token
        self.certificates: list[bytes] = []
        """All that the server tells: roots and intermediates, PEM."""
        self.agents: tuple[str, ...] = ()
        """Where agents attach; one that answers is the first."""
        self._way_to = way_to
        self._now = now
        self._root = b""
        self._page: JoinPage | None = None

    def steps(self) -> list[CheckStep]:
        return [
            *self.way.steps(),
            ("pin", self._find_pinned),
            ("tls", self._verify_but_for_dates),
            ("clock", self._compare_clocks),
            ("certificate", self._verify),
            ("agents", self._reach_agents),
        ]

    @property
    def context(self) -> ssl.SSLContext:
        """Verifies the server, by the root of the token alone: for what is secret."""
        return verifying_context(self._root)

    @property
    def roots(self) -> list[bytes]:
        """All that count, the pinned one first."""
        others = [one for one in roots_among(self.certificates) if one != self._root]
        return [self._root, *others]

    @property
    def page(self) -> JoinPage:
        assert self._page is not None
        return self._page

    @property
    def https(self) -> tuple[str, ...]:
        """Where the server is found again: as it was named first, then as it names itself."""
        return tuple(dict.fromkeys((self.way.server, *self.page.https)))

    async def _find_pinned(self) -> str:
        shown = await _asked(lambda: cacerts(self.way, unverified_context()))
        try:
            root = pinned_root(shown, self.token.pin)
        except ValueError as error:
            raise CheckFailed(
                f"{self.way.server} shows roots that cannot be read: {error}", self.way.hint
            ) from None
        if root is None:
            raise CheckFailed(
                f"{self.way.server} does not know the root that the token names: it is another server, or"
                " somebody between here and there; the token was not told to it",
                "compare SERVER with what `qanat-server token create` printed; it was made on that server",
            )
        self._root = root
        return f"{self.way.server} knows the root that the token names"

    async def _verify_but_for_dates(self) -> str:
        """The issuer and the name. The dates wait until the clocks have been compared."""
        self._page = await _asked(lambda: join_page(self.way, trusting_at_any_time(self._root), self._now))
        return f"{self.way.server} has a certificate of that root, for that name"

    async def _compare_clocks(self) -> str:
        return compare_clocks(self.way.server, self.page.behind)

    async def _verify(self) -> str:
        self.certificates = await _asked(lambda: cacerts(self.way, self.context))
        return f"{self.way.server} has a certificate that holds now"

    async def _reach_agents(self) -> str:
        """One of the agents' addresses must answer: else the token would be spent for nothing."""
        named = self._in_order()
        if not named:
            raise CheckFailed(
                f"{self.way.server} names no address where agents attach", "see [agents] listen on the server"
            )
        failures: list[CheckFailed] = []
        for address in named:
            try:
                await self._shake_hands(address)
            except CheckFailed as failure:
                failures.append(failure)
                continue
            self.agents = (address, *(one for one in named if one != address))
            return f"{address} answers"
        raise failures[0]

    def _in_order(self) -> list[str]:
        """The host that was named by who joins comes first: that one is known to be reached from here."""
        ports = [address.rpartition(":")[2] for address in self.page.agents]
        here = [join_host_port(self.way.host, int(port)) for port in ports]
        return list(dict.fromkeys((*here, *self.page.agents)))

    async def _shake_hands(self, address: str) -> None:
        way = self._way_to(address)
        for _, step in way.steps():
            await step()
        context = verifying_context(b"".join(self.roots))
        context.set_alpn_protocols(["h2"])
        tls = await way.shake_hands(context)
        if tls.alpn() != "h2":
            await trio.aclose_forcefully(tls)
            raise CheckFailed(f"{address} does not offer HTTP/2, which gRPC needs", agents_port(address).hint)
        with contextlib.suppress(trio.BrokenResourceError):  # it wants a certificate, which is not there yet
            await tls.aclose()


async def _asked(ask: Callable[[], Awaitable[T]]) -> T:
    """A server that refuses what anybody may ask is not ready."""
    try:
        return await retry_while_busy(ask)
    except Refused as refused:
        raise CheckFailed(str(refused), "see docs/errors.md, and the server's log") from None
