"""How agents get in: a carrier with a proven identity begins a node's session, or goes on with it."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

import trio

from certs.x509 import IdentityError, Proven, Usage, proven_leaf
from tunnel_core import __version__
from tunnel_core.attempt import Attempt
from tunnel_core.bucket import Bucket
from tunnel_core.carrier import Carrier
from tunnel_core.counters import Counters
from tunnel_core.credit import CreditPool, SendPool
from tunnel_core.frames import Hello, Rejected, SessionSecret, Welcome
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.logs import LineLimiter, log_event
from tunnel_core.names import node_alias
from tunnel_core.profiles import profile_of
from tunnel_core.reasons import Reason, Refused
from tunnel_core.states import LinkEvent
from tunnel_core.steps import VERSION, AttachRejected, ServerSteps
from tunnel_server.nodes import Nodes
from tunnel_server.refusals import Refusals
from tunnel_server.sessions import Held, Sessions
from tunnel_server.standing import Entry, Standing

_log = logging.getLogger("qanat.attach")

ENTRANCE = "agents"
_RETRY_MS = 5000
_SHUT_OUT_RETRY_MS = 300_000
"""For those whom only a person lets in again."""
_SHUT_OUT = {Reason.REVOKED, Reason.CERTIFICATE_EXPIRED, Reason.ROOT_RETIRED}
_FAREWELL_SECONDS = 2.5
"""For all agents together to hear that we stop; a link gives its own up within two seconds."""


@dataclass(frozen=True, slots=True)
class AttachSettings:
    """What every attach goes by. ``max_agents`` counts nodes attached at once.

    ``max_pending`` counts attaches under way: each holds a TLS connection for ten seconds at most.
    """

    trust_domain: str
    max_agents: int
    limits: Limits
    max_pending: int = 2048


@dataclass(slots=True)
class _Arrival:
    """An attach under way. ``held`` is the session it asks to go on with, None for a new one."""

    proven: Proven | None  # what its carrier has proven; None if that is nothing that may be used
    held: Held | None = None
    link: Link | None = None  # the session that it began
    refused: Refused | None = None  # why nothing was offered

    @property
    def node(self) -> str:
        return self.proven.identity.name if self.proven is not None else ""


class Attachments:
    """Takes carriers in, and keeps the sessions they carry; ``counters`` hears of every outcome.

    ``standing`` ends the sessions of those who have to go, ``refusals`` hears of those who were not let in.
    """

    def __init__(
        self,
        settings: AttachSettings,
        nodes: Nodes,
        pool: CreditPool,
        nursery: trio.Nursery,
        counters: Counters,
        standing: Standing | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self.stopping = False
        self.trust_bundle = b""
        """Roots (PEM) that agents are told; empty tells them nothing."""
        self.limits = settings.limits
        self.send_pool = SendPool(settings.limits.send_pool)
        self._settings = settings
        self._nodes = nodes
        self._pool = pool
        self._nursery = nursery
        self._counters = counters
        self._standing = standing or Standing()
        self._refusals = refusals
        self._failures = LineLimiter()
        self._arrivals: dict[Attempt, _Arrival] = {}
        self._sessions = Sessions()
        self._links: dict[Link, Entry] = {}  # also those that ended and still say so to their agent

    @property
    def pending_count(self) -> int:
        """Attaches under way."""
        return len(self._arrivals)

    def take(self, carrier: Carrier) -> None:
        """Begins the attach of a new carrier. Called by the carrier's server; never blocks or raises."""
        proven, refused = self._identify(carrier)
        arrival = _Arrival(proven)

        def offer(hello: Hello) -> Welcome | Rejected:
            try:
                if refused is not None:
                    raise refused
                return self._offer(arrival, hello)
            except AttachRejected as rejected:
                return Rejected(rejected.reason, rejected.detail, int(rejected.retry_after_seconds * 1000))
            except Refused as answer:
                arrival.refused = answer
                wait_ms = _SHUT_OUT_RETRY_MS if answer.reason in _SHUT_OUT else _RETRY_MS
                return Rejected(answer.reason, answer.detail, wait_ms)

        attempt = Attempt(carrier, ServerSteps(offer), self._used)
        self._arrivals[attempt] = arrival
        self._nursery.start_soon(self._keep, attempt, arrival)

    def _identify(self, carrier: Carrier) -> tuple[Proven | None, Refused | None]:
        domain = self._settings.trust_domain
        try:
            leaf = carrier.peer.leaf_pem
            return proven_leaf(leaf, usage=Usage.CLIENT, role=Role.NODE, trust_domain=domain), None
        except Refused as refused:
            return None, refused
        except Exception:  # one odd certificate must not end the server
            _log.exception("the certificate of %s could not be read", carrier.peer.address)
            return None, Refused(Reason.INTERNAL_ERROR)

    # Hello: what is offered. Nothing is taken over yet, and nothing moves unless the hello says so.

    def _offer(self, arrival: _Arrival, hello: Hello) -> Welcome:
        """The answer to a hello. Raises ``Refused``."""
        self._standing.require(arrival.proven)
        if hello.version != VERSION:
            detail = f"this server speaks version {VERSION}, the agent {hello.version}; update the older one"
            raise Refused(Reason.VERSION_MISMATCH, detail)
        if len(self._arrivals) > self._settings.max_pending:
            raise Refused(Reason.TOO_MANY_SESSIONS, "too many agents are attaching at this moment")
        arrival.held = self._sessions.maybe_find(arrival.node, hello)
        if arrival.held is not None:
            link = arrival.held.link
            welcome = self._welcome(hello, arrival.node, link.welcome.session, SessionSecret(), link.received)
            welcome = welcome._replace(resumed=True, used=hello.use)
            told = link.welcome.trust_bundle == self.trust_bundle
            return welcome if told else welcome._replace(trust_bundle=self.trust_bundle)
        self._check_room(arrival.node)
        self._nodes.check_duplicate(arrival.node, hello)
        session, secret = secrets.token_bytes(16), SessionSecret(secrets.token_bytes(32))
        return self._welcome(hello, arrival.node, session, secret)

    def _check_room(self, node: str) -> None:
        if self.stopping:
            raise Refused(Reason.SERVER_STOPPING)
        known = self._nodes.find_exact(node)
        most = self._settings.max_agents
        if (known is None or known.link is None) and self._nodes.attached_count >= most:
            detail = f"{most} agents are attached, the most that [agents] max of the server allows"
            raise Refused(Reason.TOO_MANY_SESSIONS, detail)

    def _welcome(
        self, hello: Hello, node: str, session: bytes, secret: SessionSecret, have: int = 0
    ) -> Welcome:
        """For a new session; an old one has no secret to tell."""
        limits = self._settings.limits
        return Welcome(
            version=VERSION,
            session=session,
            secret=secret,
            have=have,
            software=f"qanat-server/{__version__}",
            ping_interval_ms=int(_ping_interval(limits, hello) * 1000),
            missed_pings=limits.missed_pings,
            max_streams=limits.max_streams,
            early_data_limit=limits.early_data,
            initial_credit=limits.initial_credit,
            alias=node_alias(node),
            trust_bundle=self.trust_bundle if secret else b"",
            grace_ms=int(limits.grace_seconds * 1000),
        )

    # Use: what moves.

    def _used(self, attempt: Attempt) -> None:
        """The agent chose this attempt. Raises ``Refused`` if that comes too late."""
        arrival = self._arrivals.pop(attempt)
        steps = attempt.steps
        assert isinstance(steps, ServerSteps) and steps.hello is not None and steps.use is not None
        try:
            assert arrival.proven is not None
            self._standing.require(arrival.proven)  # asked again: it may have been revoked since the hello
            if arrival.held is None:
                arrival.link = self._begin(attempt, steps.hello, arrival.proven)
            else:
                self._sessions.use(arrival.held, steps.use.attempt)
                link = arrival.held.link
                link.hello = steps.hello
                self._links[link].renew(arrival.proven)
                link.move_to(attempt, max(steps.hello.have, steps.use.have))
        except BaseException:
            self._arrivals[attempt] = arrival
            raise

    def _begin(self, attempt: Attempt, hello: Hello, proven: Proven) -> Link:
        node = proven.identity.name
        # Asked again: between welcome and use the last place may have gone, or the server begun to stop.
        self._check_room(node)
        link = Link(
            hello,
            attempt.welcome,
            opener=True,
            node=node,
            limits=self._settings.limits,
            pool=self._pool,
            send_pool=self.send_pool,
            cap=Bucket(hello.max_bytes_per_second) if hello.max_bytes_per_second else None,
            on_event=self._befell,
        )
        link.peer_address = attempt.peer_address
        self._nodes.attach(node, link)
        self._sessions.add(link, hello.attempt)
        self._links[link] = self._standing.enter(proven, lambda why: link.end(why.reason, why.detail))
        link.move_to(attempt, 0)
        self._counters.attached()
        self._log_link(link, f"node {node} attached", software=link.software)
        return link

    def _befell(self, link: Link, event: LinkEvent) -> None:
        if event is LinkEvent.RESUMED:
            self._nodes.note_resumed(link)
            self._counters.resumed()
            self._log_link(link, f"node {link.node} resumed its session", streams=len(link.streams))
        elif event is LinkEvent.LOST and link.lost is not None:
            loss = link.lost
            self._nodes.note_lost(link, loss)
            sentence = f"the link to node {link.node} was lost: {loss.detail}; its streams wait"
            self._log_link(link, sentence, reason=loss.reason, streams=len(link.streams))

    def _log_link(self, link: Link, sentence: str, **fields: object) -> None:
        known = {"node": link.node, "session": link.session_id, "address": link.peer_address}
        log_event(_log, logging.INFO, sentence, **known, **fields)

    # Each attach and each session has a task.

    async def _keep(self, attempt: Attempt, arrival: _Arrival) -> None:
        try:
            await attempt.settle(self._settings.limits.attach_timeout_seconds)
        except Refused as refused:
            self._note_failure(attempt, arrival, refused)
        except Exception:
            _log.exception("the attach of node %s failed", arrival.node)
            self._note_failure(attempt, arrival, Refused(Reason.INTERNAL_ERROR))
        finally:
            self._arrivals.pop(attempt, None)
        if arrival.link is not None:
            await self._keep_link(arrival.link)

    async def _keep_link(self, link: Link) -> None:
        try:
            await link.run()
        except Exception:
            _log.exception("the link of node %s failed", link.node)
        finally:
            self._note_end(link)

    def _note_end(self, link: Link) -> None:
        reason, detail = link.ended or (Reason.SESSION_LOST, Reason.SESSION_LOST.meaning)
        self._links.pop(link).leave()
        self._sessions.discard(link)
        self._counters.session_ended(reason)
        self._nodes.detach(link, reason, detail)
        self._log_link(link, f"node {link.node} detached: {detail}", reason=reason)

    def _note_failure(self, attempt: Attempt, arrival: _Arrival, refused: Refused) -> None:
        if arrival.node and refused.reason is Reason.CARRIER_LOST:
            self._note_abandoned(attempt, arrival)
            return
        self._counters.attached(refused.reason)
        if self._refusals is not None:
            told = _named(arrival.refused or refused, arrival.proven)
            self._refusals.note(ENTRANCE, attempt.peer_address, told)
        left_out = self._failures.note(refused.reason, trio.current_time())
        if left_out is None:
            return
        who = f"node {arrival.node}" if arrival.node else "an unknown node"
        fields = {"reason": refused.reason, "address": attempt.peer_address, "left_out": left_out or None}
        log_event(_log, logging.WARNING, f"attach of {who} failed: {refused.detail}", **fields)

    def _note_abandoned(self, attempt: Attempt, arrival: _Arrival) -> None:
        if attempt.steps.welcome is not None and arrival.held is None:
            log_event(_log, logging.INFO, f"node {arrival.node} may attach, and left; a check does that")
            return
        self._counters.attach_abandoned()
        sentence = f"node {arrival.node} left an attach; of several attempts an agent keeps one"
        log_event(_log, logging.DEBUG, sentence, address=attempt.peer_address)

    @property
    def stream_count(self) -> int:
        """Streams open over all sessions."""
        return sum(len(link.streams) for link in self._links)

    def drain(self, deadline_seconds: float) -> None:
        """No new sessions, and no new streams in those that are there."""
        self.stopping = True
        for link in self._links:
            link.drain(deadline_seconds)

    async def wait_no_streams(self) -> None:
        """Waits until no stream is open. For one caller, after ``drain``."""
        for link in list(self._links):
            await link.wait_no_streams()

    async def end_all(self, reason: Reason) -> None:
        """Ends every session, and waits until the agents heard it or had their time to."""
        links = list(self._links)
        for link in links:
            link.end(reason)
        with trio.move_on_after(_FAREWELL_SECONDS):
            for link in links:
                await link.wait_given_up()


def _named(refused: Refused, proven: Proven | None) -> Refused:
    """The refusal with the one whom it befell, where that is proven."""
    if proven is None or isinstance(refused, IdentityError):
        return refused
    return IdentityError.of(proven, refused)


def _ping_interval(limits: Limits, hello: Hello) -> float:
    """What this server is set to; on a metered link at least what its profile says."""
    seconds = limits.ping_interval_seconds
    if not hello.metered:
        return seconds
    return max(seconds, profile_of(metered=True).idle_ping_seconds)
