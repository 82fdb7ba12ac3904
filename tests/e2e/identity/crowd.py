"""Many agents in one process that join, and renew, at one moment, controlled by lines on standard input.

``python -m tests.e2e.identity.crowd HTTPS AGENTS TRUST_DOMAIN ROOTS FOLDER COUNT``, then the lines
``enrol TOKEN`` and ``renew``, each answered with a line of JSON. They use the agent's own client and
retries, and attach with its own sessions. All keys are made before the first line. Every target is an
echo. The program ends with its input.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from bench.attachers import echo
from certs.bundle import Bundle, split_pem, write_bundle
from certs.pkcs7 import chain_for
from certs.requests import make_request
from certs.token import Token, parse_token
from tunnel_agent.attach.connector import Connector
from tunnel_agent.certificate import est_client
from tunnel_agent.certificate.est_client import ServerRefused
from tunnel_agent.certificate.retry import retry_while_busy
from tunnel_agent.certificate.trust import verifying_context
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.network.server_path import ServerPath, https_port
from tunnel_core.carrier.asyncio_bridge import Bridge, open_bridge
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.limits import Limits
from tunnel_core.session.session import Session

_REQUESTS, _ATTACHES = 24, 16
"""Number under way at once: below the server's limit for unauthenticated connections of one address."""
_SECONDS = 30.0


class Crowd:
    """``refusals`` counts the server's refusals before it accepts."""

    def __init__(self, arguments: list[str], bridge: Bridge, nursery: trio.Nursery) -> None:
        https, self.agents, domain, roots, folder, count = arguments
        self.refusals: Counter[str] = Counter()
        self._bridge = bridge
        self._nursery = nursery
        self._roots = Path(roots).read_bytes()
        self._context = verifying_context(self._roots)
        self._way = ServerPath(https_port(https), "crowd", ProxyChoice(), _SECONDS, None)
        self._requests = trio.CapacityLimiter(_REQUESTS)
        self.attaches = trio.CapacityLimiter(_ATTACHES)
        ids = [SpiffeId(domain, Role.NODE, f"crowd-{number}") for number in range(int(count))]
        self.members = [Member(self, identity, Path(folder)) for identity in ids]

    async def begin(self) -> None:
        """Find the server, and the certificates that lead to its root."""
        for _, step in self._way.steps():
            await step()
        self._told = await est_client.cacerts(self._way, self._context)

    async def all(self, do: Callable[[Member], Awaitable[None]]) -> dict[str, object]:
        """Let every agent do it, a few at once; returns the duration and the refusals."""
        self.refusals.clear()
        began = time.monotonic()

        async with trio.open_nursery() as nursery:
            for member in self.members:
                nursery.start_soon(do, member)
        lives = sum(member.lives for member in self.members)
        return {"seconds": time.monotonic() - began, "refusals": self.refusals, "attached": lives}

    async def ask(self, asking: Callable[[], Awaitable[bytes]]) -> bytes:
        """Ask for the certificate (PEM) with an agent's retries."""

        async def counted() -> bytes:
            try:
                async with self._requests:  # a wait before a retry delays no other agent
                    return await asking()
            except ServerRefused as refused:
                self.refusals[refused.reason.word] += 1
                raise

        return await retry_while_busy(counted)


class Member:
    """One agent. Its first key and the next are made with it."""

    def __init__(self, crowd: Crowd, identity: SpiffeId, folder: Path) -> None:
        self._crowd = crowd
        self._identity = identity
        self._file = folder / f"{identity.name}.pem"
        self._requests = [make_request(identity) for _ in range(2)]
        self._connector: Connector | None = None
        self._link: Session | None = None

    @property
    def lives(self) -> bool:
        return self._link is not None and self._link.ended is None

    async def enrol(self, token: Token) -> None:
        """Gets its first certificate, and attaches with it."""
        crowd, request = self._crowd, self._requests[0]
        leaf = await crowd.ask(
            lambda: est_client.enrol(crowd._way, crowd._context, self._identity.name, token, request.body)
        )
        self._connector = self._made_connector(self._keep(leaf, 0))
        async with crowd.attaches:
            await crowd._nursery.start(self._stay, self._connector)

    async def renew(self) -> None:
        """Gets its next certificate, and moves its session to a carrier that shows it."""
        crowd, request = self._crowd, self._requests[1]

        async def ask() -> bytes:
            # A context takes milliseconds, so the agent makes it in its turn; else all pings would be late.
            context = verifying_context(crowd._roots, client_file=self._file)
            return await est_client.renew(crowd._way, context, request.body)

        leaf = await crowd.ask(ask)
        assert self._connector is not None
        self._connector.use_bundle(self._keep(leaf, 1))

    def _keep(self, leaf: bytes, number: int) -> Bundle:
        key = self._requests[number].key_pem
        chain = chain_for(key, [*split_pem(leaf), *self._crowd._told])
        bundle = Bundle(self._identity, key, chain, self._crowd._roots)
        write_bundle(self._file, bundle)
        return bundle

    def _made_connector(self, bundle: Bundle) -> Connector:
        return Connector(
            self._crowd._bridge,
            bundle,
            ProxyChoice(),
            Limits(),
            connect_timeout_seconds=_SECONDS,
            services=(),
            on_open=lambda stream: self._crowd._nursery.start_soon(echo, stream),
            on_state_change=lambda _: None,
        )

    async def _stay(self, connector: Connector, task_status: trio.TaskStatus[None]) -> None:
        async with connector.open_session(self._crowd.agents) as self._link:
            task_status.started()
            await self._link.wait_ended()
        raise SystemExit(f"{self._link.node} lost its session: {self._link.ended}")


async def main(arguments: list[str]) -> None:
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        crowd = Crowd(arguments, bridge, nursery)
        await crowd.begin()
        _say({"ready": len(crowd.members)})
        async for line in trio.wrap_file(sys.stdin):
            word, _, argument = line.strip().partition(" ")
            if word == "enrol":
                token = parse_token(argument)
                _say(await crowd.all(functools.partial(Member.enrol, token=token)))
            else:
                _say(await crowd.all(Member.renew))
        nursery.cancel_scope.cancel()


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
