"""How agents get in: each carrier's proven identity becomes a link, and the link a node's session."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

import trio

from certs.x509 import Usage, identity_of_leaf
from tunnel_core import __version__
from tunnel_core.carrier import Carrier
from tunnel_core.counters import Counters
from tunnel_core.credit import CreditPool
from tunnel_core.frames import Hello, Rejected, Welcome
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.logs import LineLimiter, log_event
from tunnel_core.names import node_alias
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session import VERSION, ServerSteps
from tunnel_server.nodes import Nodes

_log = logging.getLogger("qanat.attach")

_RETRY_MS = 5000
_FAREWELL_SECONDS = 2.0
"""For all agents together to hear that we stop; a link gives its own up within one second."""


@dataclass(frozen=True, slots=True)
class AttachSettings:
    """What every attach goes by. ``max_agents`` counts nodes attached at once.

    ``max_pending`` counts attaches under way: each holds a TLS connection for ten seconds at most.
    """

    trust_domain: str
    max_agents: int
    limits: Limits
    max_pending: int = 2048


class Attachments:
    """Takes carriers in, and keeps the links they become; ``counters`` hears of every outcome."""

    def __init__(
        self,
        settings: AttachSettings,
        nodes: Nodes,
        pool: CreditPool,
        nursery: trio.Nursery,
        counters: Counters,
    ) -> None:
        self.stopping = False
        self.limits = settings.limits
        self._settings = settings
        self._nodes = nodes
        self._pool = pool
        self._nursery = nursery
        self._counters = counters
        self._failures = LineLimiter()
        self._pending: set[Link] = set()
        self._sessions: set[Link] = set()  # also those that ended and still say so to their agent

    @property
    def pending_count(self) -> int:
        """Attaches under way."""
        return len(self._pending)

    def take(self, carrier: Carrier) -> None:
        """Begins the attach of a new carrier. Called by the carrier's server; never blocks or raises."""
        node, refused = self._identify(carrier)

        def offer(hello: Hello) -> Welcome | Rejected:
            answer = refused or self._decide(node, hello)
            return Rejected(answer.reason, answer.detail, _RETRY_MS) if answer else self._welcome(node)

        steps = ServerSteps(offer)
        link = Link(
            carrier,
            steps,
            node=node,
            limits=self._settings.limits,
            pool=self._pool,
            on_attached=self._attached,
        )
        self._pending.add(link)
        self._nursery.start_soon(self._keep, link, steps)

    def _identify(self, carrier: Carrier) -> tuple[str, Refused | None]:
        domain = self._settings.trust_domain
        try:
            identity = identity_of_leaf(
                carrier.peer.leaf_pem, usage=Usage.CLIENT, role=Role.NODE, trust_domain=domain
            )
        except Refused as refused:
            return "", refused
        except Exception:  # one odd certificate must not end the server
            _log.exception("the certificate of %s could not be read", carrier.peer.address)
            return "", Refused(Reason.INTERNAL_ERROR)
        return identity.name, None

    def _decide(self, node: str, hello: Hello) -> Refused | None:
        if hello.version != VERSION:
            detail = f"this server speaks version {VERSION}, the agent {hello.version}; update the older one"
            return Refused(Reason.VERSION_MISMATCH, detail)
        if len(self._pending) > self._settings.max_pending:
            return Refused(Reason.TOO_MANY_SESSIONS, "too many agents are attaching at this moment")
        return self._no_room(node)

    def _no_room(self, node: str) -> Refused | None:
        if self.stopping:
            return Refused(Reason.SERVER_STOPPING)
        known = self._nodes.find_exact(node)
        most = self._settings.max_agents
        if (known is None or known.link is None) and self._nodes.attached_count >= most:
            detail = f"{most} agents are attached, the most that [agents] max of the server allows"
            return Refused(Reason.TOO_MANY_SESSIONS, detail)
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
        self._pending.discard(link)
        try:
            self._admit(link)
        except Refused as refused:
            link.end(refused.reason, refused.detail)
            return
        self._sessions.add(link)
        self._counters.attached()
        log_event(
            _log,
            logging.INFO,
            f"node {link.node} attached",
            node=link.node,
            session=link.session_id,
            address=link.peer_address,
            software=link.software,
        )

    def _admit(self, link: Link) -> None:
        # Asked again: between welcome and use the last place may have gone, or the server begun to stop.
        if refused := self._no_room(link.node):
            raise refused
        self._nodes.attach(link.node, link)

    async def _keep(self, link: Link, steps: ServerSteps) -> None:
        try:
            await link.run()
        except Exception:
            _log.exception("the link of node %s failed", link.node)
        finally:
            self._note_end(link, asked_only=steps.welcome is not None and not steps.attached)

    def _note_end(self, link: Link, *, asked_only: bool) -> None:
        reason, detail = link.ended or (Reason.SESSION_LOST, Reason.SESSION_LOST.meaning)
        self._pending.discard(link)
        if link in self._sessions:
            self._sessions.discard(link)
            self._counters.session_ended(reason)
            self._nodes.detach(link, reason, detail)
            sentence = f"node {link.node} detached: {detail}"
            log_event(_log, logging.INFO, sentence, node=link.node, session=link.session_id, reason=reason)
        elif asked_only and reason is Reason.CARRIER_LOST:
            log_event(_log, logging.INFO, f"node {link.node} may attach, and left; a check does that")
        else:
            self._note_failure(link, reason, detail)

    def _note_failure(self, link: Link, reason: Reason, detail: str) -> None:
        self._counters.attached(reason)
        left_out = self._failures.note(reason, trio.current_time())
        if left_out is None:
            return
        sentence = f"attach of {f'node {link.node}' if link.node else 'an unknown node'} failed: {detail}"
        fields = {"reason": reason, "address": link.peer_address, "left_out": left_out or None}
        log_event(_log, logging.WARNING, sentence, **fields)

    @property
    def stream_count(self) -> int:
        """Streams open over all sessions."""
        return sum(len(link.streams) for link in self._sessions)

    def drain(self, deadline_seconds: float) -> None:
        """No new sessions, and no new streams in those that are there."""
        self.stopping = True
        for link in self._sessions:
            link.drain(deadline_seconds)

    async def wait_no_streams(self) -> None:
        """Waits until no stream is open. For one caller, after ``drain``."""
        for link in list(self._sessions):
            await link.wait_no_streams()

    async def end_all(self, reason: Reason) -> None:
        """Ends every session, and waits until the agents heard it or had their time to."""
        links = list(self._sessions)
        for link in links:
            link.end(reason)
        with trio.move_on_after(_FAREWELL_SECONDS):
            for link in links:
                await link.wait_given_up()
