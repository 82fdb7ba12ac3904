"""First contact of a joining node: verify the server by the token's pin, before the token is sent."""

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
    unverified_context,
    verifying_context,
    verifying_context_without_dates,
)
from tunnel_agent.checks import CheckFailed, CheckStep
from tunnel_agent.network.clock_check import compare_clocks
from tunnel_agent.network.server_path import ServerPath, agents_port
from tunnel_core.names import join_host_port
from tunnel_core.reasons import Refused

T = TypeVar("T")


class Contact:
    """Steps of the first contact. Each step needs the results of the previous ones."""

    def __init__(
        self,
        https_path: ServerPath,
        token: Token,
        path_to_agents: Callable[[str], ServerPath],
        now: Callable[[], datetime],
    ) -> None:
        """Prepare the steps.

        ``https_path`` leads to the HTTPS listener, ``path_to_agents(host:port)`` to a listener for agents.
        """
        self.https_path = https_path
        self.token = token
        self.certificates: list[bytes] = []
        """Roots and intermediate certificates that the server sent, PEM."""
        self.agents: tuple[str, ...] = ()
        """Addresses for agents. The first one answered."""
        self._path_to_agents = path_to_agents
        self._now = now
        self._root = b""
        self._page: JoinPage | None = None

    def steps(self) -> list[CheckStep]:
        """Return the steps in their order."""
        return [
            *self.https_path.steps(),
            ("pin", self._find_pinned),
            ("tls", self._verify_but_for_dates),
            ("clock", self._compare_clocks),
            ("certificate", self._verify),
            ("agents", self._reach_agents),
        ]

    @property
    def context(self) -> ssl.SSLContext:
        """Context that trusts only the token's root. Secrets go over connections with this context."""
        return verifying_context(self._root)

    @property
    def roots(self) -> list[bytes]:
        """All roots of the server (PEM), the pinned one first."""
        others = [root for root in roots_among(self.certificates) if root != self._root]
        return [self._root, *others]

    @property
    def page(self) -> JoinPage:
        """The join page, present after the step ``tls``."""
        assert self._page is not None
        return self._page

    @property
    def https(self) -> tuple[str, ...]:
        """Addresses of the HTTPS listener: the caller's first, then those of the join page."""
        return tuple(dict.fromkeys((self.https_path.server, *self.page.https)))

    async def _find_pinned(self) -> str:
        certificates = await _retry(lambda: cacerts(self.https_path, unverified_context()))
        try:
            root = pinned_root(certificates, self.token.pin)
        except ValueError as error:
            raise CheckFailed(
                f"{self.https_path.server} sends roots that cannot be read: {error}", self.https_path.hint
            ) from None
        if root is None:
            raise CheckFailed(
                f"{self.https_path.server} does not know the root that the token names: it is another server,"
                " or an attacker in between; the token was not sent",
                "compare SERVER with the output of `qanat-server token create` on the token's server",
            )
        self._root = root
        return f"{self.https_path.server} knows the root that the token names"

    async def _verify_but_for_dates(self) -> str:
        """Verify the issuer and the name. The dates are verified after the comparison of the clocks."""
        self._page = await _retry(
            lambda: join_page(self.https_path, verifying_context_without_dates(self._root), self._now)
        )
        return f"{self.https_path.server} has a certificate of this root, for this name"

    async def _compare_clocks(self) -> str:
        return compare_clocks(self.https_path.server, self.page.behind)

    async def _verify(self) -> str:
        self.certificates = await _retry(lambda: cacerts(self.https_path, self.context))
        return f"{self.https_path.server} has a certificate that is valid now"

    async def _reach_agents(self) -> str:
        """Find an address for agents that answers, because the token would be wasted without one."""
        addresses = self._addresses_in_order()
        if not addresses:
            raise CheckFailed(
                f"{self.https_path.server} names no address for agents", "see [agents] listen on the server"
            )
        failures: list[CheckFailed] = []
        for address in addresses:
            try:
                await self._shake_hands(address)
            except CheckFailed as failure:
                failures.append(failure)
                continue
            self.agents = (address, *(other for other in addresses if other != address))
            return f"{address} answers"
        raise failures[0]

    def _addresses_in_order(self) -> list[str]:
        """Return the addresses for agents, first those with the caller's host, which this machine reaches."""
        ports = [address.rpartition(":")[2] for address in self.page.agents]
        at_host = [join_host_port(self.https_path.host, int(port)) for port in ports]
        return list(dict.fromkeys((*at_host, *self.page.agents)))

    async def _shake_hands(self, address: str) -> None:
        path = self._path_to_agents(address)
        for _, step in path.steps():
            await step()
        context = verifying_context(b"".join(self.roots))
        context.set_alpn_protocols(["h2"])
        tls = await path.shake_hands(context)
        if tls.alpn() != "h2":
            await trio.aclose_forcefully(tls)
            raise CheckFailed(f"{address} does not offer HTTP/2, which gRPC needs", agents_port(address).hint)
        # The server may break the connection, because it requires a certificate, which the node lacks.
        with contextlib.suppress(trio.BrokenResourceError):
            await tls.aclose()


async def _retry(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask with retries. A refusal means that the server is not ready, because these requests are public."""
    try:
        return await retry_while_busy(ask)
    except Refused as refused:
        raise CheckFailed(str(refused), "see docs/errors.md, and the server's log") from None
