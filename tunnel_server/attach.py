"""How agents get in: each carrier's proven identity becomes a link, and the link a node's session."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import trio

from certs.x509 import Usage, identity_of_leaf
from tunnel_core import __version__
from tunnel_core.carrier import Carrier
from tunnel_core.credit import CreditPool
from tunnel_core.frames import Hello, Rejected, Welcome
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.logs import log_event
from tunnel_core.names import node_alias
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session import VERSION, ServerSteps
from tunnel_server.nodes import Nodes

_log = logging.getLogger("qanat.attach")

_MAX_PENDING = 2048
"""Attaches under way at once: each holds a TLS connection for ten seconds at most."""
_RETRY_MS = 5000


@dataclass(frozen=True, slots=True)
class AttachSettings:
    """What every attach goes by. ``max_agents`` counts nodes attached at once."""

    trust_domain: str
    max_agents: int
    limits: Limits


class Attachments:
    """Takes carriers in, and keeps the links they become. ``count`` hears of every end and refusal."""

    def __init__(
        self,
        settings: AttachSettings,
        nodes: Nodes,
        pool: CreditPool,
        nursery: trio.Nursery,
        count: Callable[[Reason], None] = lambda reason: None,
    ) -> None:
        self.stopping = False
        self.limits = settings.limits
        self._settings = settings
        self._nodes = nodes
        self._pool = pool
        self._nursery = nursery
        self._count = count
        self._pending = 0

    def take(self, carrier: Carrier) -> None:
        """Begins the attach of a new carrier. Called by the carrier's server; never blocks or raises."""
        node, refused = self._identify(carrier)

        def offer(hello: Hello) -> Welcome | Rejected:
            answer = refused or self._decide(node, hello)
            return Rejected(answer.reason, answer.detail, _RETRY_MS) if answer else self._welcome(node)

        link = Link(
            carrier,
            ServerSteps(offer),
            node=node,
            limits=self._settings.limits,
            pool=self._pool,
            on_attached=self._attached,
        )
        self._pending += 1
        self._nursery.start_soon(self._keep, link)

    def _identify(self, carrier: Carrier) -> tuple[str, Refused | None]:
        domain = self._settings.trust_domain
        try:
            identity = identity_of_leaf(
                carrier.peer.leaf_pem, usage=Usage.CLIENT, role=Role.NODE, trust_domain=domain
            )
        except Refused as refused:
            return "", refused
        return identity.name, None

    def _decide(self, node: str, hello: Hello) -> Refused | None:
        if hello.version != VERSION:
            detail = f"this server speaks version {VERSION}, the agent {hello.version}; update the older one"
            return Refused(Reason.VERSION_MISMATCH, detail)
        if self.stopping:
            return Refused(Reason.SERVER_STOPPING)
        known = self._nodes.find_exact(node)
        most = self._settings.max_agents
        if (known is None or known.link is None) and self._nodes.attached_count >= most:
            detail = f"{most} agents are attached, the most that [agents] max allows"
            return Refused(Reason.TOO_MANY_SESSIONS, detail)
        if self._pending > _MAX_PENDING:
            return Refused(Reason.TOO_MANY_SESSIONS, "too many agents are attaching at this moment")
        return None

    def _welcome(self, node: str) -> Welcome:
        limits = self._settings.limits
        return Welcome(
            version=VERSION,
            session=secrets.token_bytes(16),
            secret=secrets.token_bytes(32),
            have=0,
            software=f"qanat-server/{__version__}",
            ping_interval_ms=int(limits.ping_interval_seconds * 1000),
            missed_pings=limits.missed_pings,
            max_streams=limits.max_streams,
            early_data_limit=limits.early_data,
            initial_credit=limits.initial_credit,
            alias=node_alias(node),
        )

    def _attached(self, link: Link) -> None:
        self._pending -= 1
        try:
            self._nodes.attach(link.node, link)
        except Refused as refused:
            link.end(refused.reason, refused.detail)
            return
        log_event(
            _log,
            logging.INFO,
            f"node {link.node} attached",
            node=link.node,
            session=link.session_id,
            address=link.peer_address,
            software=link.software,
        )

    async def _keep(self, link: Link) -> None:
        try:
            await link.run()
        except Exception:
            _log.exception("the link of node %s failed", link.node)
            link.end(Reason.INTERNAL_ERROR)
        finally:
            self._note_end(link)

    def _note_end(self, link: Link) -> None:
        reason, detail = link.ended or (Reason.SESSION_LOST, "")
        self._count(reason)
        if not link.was_attached:
            self._pending -= 1
            sentence = f"attach of {link.node or 'an unknown node'} failed: {detail}"
            log_event(_log, logging.WARNING, sentence, reason=reason, address=link.peer_address)
            return
        self._nodes.detach(link, reason, detail)
        sentence = f"node {link.node} detached: {detail}"
        log_event(_log, logging.INFO, sentence, node=link.node, session=link.session_id, reason=reason)

    @property
    def stream_count(self) -> int:
        """Streams open over all sessions."""
        return sum(len(link.streams) for _, link in self._nodes.attached())

    def drain(self, deadline_seconds: float) -> None:
        """No new sessions, and no new streams in those that are there."""
        self.stopping = True
        for _, link in self._nodes.attached():
            link.drain(deadline_seconds)

    async def wait_no_streams(self) -> None:
        """Waits until no stream is open."""
        for _, link in self._nodes.attached():
            await link.wait_no_streams()

    async def end_all(self, reason: Reason) -> None:
        """Ends every session, and waits until the agents heard it or had their time to."""
        links = [link for _, link in self._nodes.attached()]
        for link in links:
            link.end(reason)
        for link in links:
            await link.wait_given_up()
