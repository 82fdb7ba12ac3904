"""How agents get in: a carrier with a proven identity begins a node's session, or goes on with it.

1. A certificate that lets nobody in is refused at the call, before a hello is awaited.
2. An attach under way holds a connection, so each identity has few (``arrivals.py``), and a call without a
   hello ends after two seconds unless it is the newest of its identity.
3. A hello is offered a session only if its node has not attached too often lately (``attach_budget.py``).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from certs.x509 import IdentityError, Usage, VerifiedCertificate, proven_leaf
from tunnel_core.carrier.interface import Carrier
from tunnel_core.congestion.token_bucket import TokenBucket
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.names import node_alias
from tunnel_core.reasons import Reason, Refused, Retry
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import VERSION, AttachRejected, ServerHandshake
from tunnel_core.session.profiles import profile_of
from tunnel_core.session.session import Session
from tunnel_core.session.state import SessionEvent
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.line_limiter import LineLimiter
from tunnel_core.telemetry.logs import log_event
from tunnel_core.version import __version__
from tunnel_core.wire.frames import Hello, Rejected, SessionSecret, Welcome
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.auth.credential_watch import CredentialWatch, WatchEntry
from tunnel_server.nodes.announced import checked_hello
from tunnel_server.nodes.arrivals import PendingAttach, PendingAttaches, identity_of
from tunnel_server.nodes.registry import Nodes
from tunnel_server.nodes.sessions import Sessions

_log = logging.getLogger("qanat.attach")

ENTRANCE = "agents"
_RETRY_MS = 5000
_SHUT_OUT_RETRY_MS = 300_000
"""For those whom only a person lets in again."""
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
    """Attaches under way over all identities. Each holds a connection for 10 s at most."""


class SessionAcceptor:
    """Takes carriers in, and keeps the sessions they carry; ``counters`` hears of every outcome.

    ``standing`` ends the sessions of those who have to go, ``refusals`` hears of those who were not let in.
    ``trust_bundle`` gives the roots (PEM) that agents are told; if it gives none, agents are told nothing.
    """

    def __init__(
        self,
        settings: AttachSettings,
        nodes: Nodes,
        pool: CreditPool,
        nursery: trio.Nursery,
        counters: Counters,
        *,
        standing: CredentialWatch,
        refusals: Refusals,
        trust_bundle: Callable[[], bytes],
    ) -> None:
        self.stopping = False
        self.limits = settings.limits
        self.send_pool = SendPool(settings.limits.send_pool)
        self._settings = settings
        self._nodes = nodes
        self._pool = pool
        self._nursery = nursery
        self._counters = counters
        self._standing = standing
        self._refusals = refusals
        self._trust_bundle = trust_bundle
        self._failures = LineLimiter()
        self._arrivals = PendingAttaches(settings.limits.max_attaches_per_identity)
        self._sessions = Sessions()
        self._links: dict[Session, WatchEntry] = {}  # also those that ended and still say so to their agent

    def take(self, carrier: Carrier) -> None:
        """Begins the attach of a new carrier. Called by the carrier's server; never blocks or raises."""
        proven, refused = self._identify(carrier)
        refused = refused or self._why_shut_out(proven)
        arrival = PendingAttach(identity_of(proven, refused, carrier.peer.leaf_pem), proven, refused=refused)

        def offer(hello: Hello) -> Welcome | Rejected:
            try:
                return self._offer(arrival, hello)
            except AttachRejected as rejected:
                return Rejected(rejected.reason, rejected.detail, int(rejected.retry_after_seconds * 1000))
            except Refused as answer:
                arrival.refused = answer.with_traceback(None)  # which leads back to the arrival
                return Rejected(answer.reason, answer.detail, _retry_ms(answer))

        attempt = Attachment(carrier, ServerHandshake(offer), self._used)
        oldest = self._arrivals.add(attempt, arrival)
        if oldest is not None:
            most = self._settings.limits.max_attaches_per_identity
            detail = f"more than {most} attaches with one certificate are under way; the oldest ends"
            oldest.displace(Refused(Reason.TOO_MANY_ATTACHES, detail))
        refused = refused or self._why_no_room()
        if refused is not None:
            arrival.refused = refused
            attempt.refuse(refused, _retry_ms(refused))
        self._nursery.start_soon(self._keep, attempt, arrival)

    def _why_shut_out(self, proven: VerifiedCertificate | None) -> Refused | None:
        """Return why the certificate is not good now: it is revoked, for example."""
        try:
            self._standing.require(proven)
        except Refused as refused:
            return refused.with_traceback(None)  # which leads back to who keeps it
        return None

    def _why_no_room(self) -> Refused | None:
        if len(self._arrivals) > self._settings.max_pending:
            return Refused(Reason.TOO_MANY_SESSIONS, "too many agents are attaching at this moment")
        return None

    def _identify(self, carrier: Carrier) -> tuple[VerifiedCertificate | None, Refused | None]:
        domain = self._settings.trust_domain
        try:
            leaf = carrier.peer.leaf_pem
            return proven_leaf(leaf, usage=Usage.CLIENT, role=Role.NODE, trust_domain=domain), None
        except Refused as refused:
            return None, refused.with_traceback(None)
        except Exception:  # one odd certificate must not end the server
            _log.exception("the certificate of %s could not be read", carrier.peer.address)
            return None, Refused(Reason.INTERNAL_ERROR)

    # Hello: what is offered. Nothing is taken over yet, and nothing moves unless the hello says so.

    def _offer(self, arrival: PendingAttach, hello: Hello) -> Welcome:
        """The answer to a hello. Raises ``Refused``."""
        self._standing.require(arrival.proven)
        if hello.version != VERSION:
            detail = f"this server speaks version {VERSION}, the agent {hello.version}; update the older one"
            raise Refused(Reason.VERSION_MISMATCH, detail)
        arrival.held = self._sessions.maybe_find(arrival.node, hello)
        if arrival.held is not None:
            self._nodes.spend_attach(arrival.node, resumes=True)
            link = arrival.held.link
            welcome = self._welcome(hello, arrival.node, link.welcome.session, SessionSecret(), link.received)
            welcome = welcome._replace(resumed=True, used=hello.use)
            roots = self._trust_bundle()
            return welcome if link.welcome.trust_bundle == roots else welcome._replace(trust_bundle=roots)
        self._check_room(arrival.node)
        self._nodes.check_duplicate(arrival.node, hello)
        self._nodes.spend_attach(arrival.node, resumes=False)
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
            trust_bundle=self._trust_bundle() if secret else b"",
            grace_ms=int(limits.grace_seconds * 1000),
        )

    # Use: what moves.

    def _used(self, attempt: Attachment) -> None:
        """The agent chose this attempt. Raises ``Refused`` if that comes too late."""
        arrival = self._arrivals.find(attempt)
        steps = attempt.steps
        assert isinstance(steps, ServerHandshake) and steps.hello is not None and steps.use is not None
        assert arrival.proven is not None
        self._standing.require(arrival.proven)  # asked again: it may have been revoked since the hello
        hello = self._check_hello(arrival.node, steps.hello)
        if arrival.held is None:
            arrival.link = self._begin(attempt, hello, arrival.proven)
        else:
            self._sessions.use(arrival.held, steps.use.attempt)
            link = arrival.held.link
            link.hello = hello
            self._links[link].renew(arrival.proven)
            link.move_to(attempt, max(hello.have, steps.use.have))
        self._arrivals.discard(attempt)

    def _check_hello(self, node: str, said: Hello) -> Hello:
        """Return what may be shown of the hello; a service that no agent may announce is left out."""
        hello, left_out = checked_hello(said)
        if left_out:
            sentence = (
                f"{left_out} services of node {node} are left out: their names or protocols are not valid"
            )
            self._log_of_node(node, "services", logging.WARNING, sentence)
        return hello

    def _begin(self, attempt: Attachment, hello: Hello, proven: VerifiedCertificate) -> Session:
        node = proven.identity.name
        # Asked again: between welcome and use the last place may have gone, or the server begun to stop.
        self._check_room(node)
        link = Session(
            hello,
            attempt.welcome,
            opener=True,
            node=node,
            limits=self._settings.limits,
            pool=self._pool,
            send_pool=self.send_pool,
            cap=TokenBucket(hello.max_bytes_per_second) if hello.max_bytes_per_second else None,
            on_event=self._on_event,
        )
        link.peer_address = attempt.peer_address
        self._nodes.attach(node, link)
        self._sessions.add(link, hello.attempt)
        self._links[link] = self._standing.register(proven, lambda why: link.end(why.reason, why.detail))
        link.move_to(attempt, 0)
        self._counters.attached()
        self._log_link(link, "attached", f"node {node} attached", software=link.software)
        return link

    def _on_event(self, link: Session, event: SessionEvent) -> None:
        if event is SessionEvent.RESUMED:
            self._nodes.note_resumed(link)
            self._counters.resumed()
            self._log_link(
                link, "resumed", f"node {link.node} resumed its session", streams=len(link.streams)
            )
        elif event is SessionEvent.LOST and link.lost is not None:
            loss = link.lost
            self._nodes.note_lost(link, loss)
            sentence = f"the link to node {link.node} was lost: {loss.detail}; its streams wait"
            self._log_link(link, "lost", sentence, reason=loss.reason, streams=len(link.streams))

    def _log_link(self, link: Session, kind: str, sentence: str, **fields: object) -> None:
        known = {"node": link.node, "session": link.session_id, "address": link.peer_address}
        self._log_of_node(link.node, kind, logging.INFO, sentence, **known, **fields)

    def _log_of_node(self, node: str, kind: str, level: int, sentence: str, /, **fields: object) -> None:
        """Log what a node has caused, unless it has used up its budget of lines of this kind."""
        left_out = self._nodes.writes.note((node, f"line {kind}"), trio.current_time())
        if left_out is not None:
            log_event(_log, level, sentence, **fields, left_out=left_out or None)

    # Each attach and each session has a task.

    async def _keep(self, attempt: Attachment, arrival: PendingAttach) -> None:
        limits = self._settings.limits
        try:
            is_newest = partial(self._arrivals.is_newest, attempt)
            await attempt.settle(limits.attach_timeout_seconds, limits.hello_timeout_seconds, is_newest)
        except Refused as refused:
            self._note_failure(attempt, arrival, refused)
        except Exception:
            _log.exception("the attach of node %s failed", arrival.node)
            self._note_failure(attempt, arrival, Refused(Reason.INTERNAL_ERROR))
        finally:
            self._arrivals.discard(attempt)
        if arrival.link is not None:
            await self._keep_link(arrival.link)

    async def _keep_link(self, link: Session) -> None:
        try:
            await link.run()
        except Exception:
            _log.exception("the link of node %s failed", link.node)
        finally:
            self._note_end(link)

    def _note_end(self, link: Session) -> None:
        reason, detail = link.ended or (Reason.SESSION_LOST, Reason.SESSION_LOST.meaning)
        self._links.pop(link).leave()
        self._sessions.discard(link)
        self._counters.session_ended(reason)
        self._nodes.detach(link, reason, detail)
        self._log_link(link, "detached", f"node {link.node} detached: {detail}", reason=reason)

    def _note_failure(self, attempt: Attachment, arrival: PendingAttach, refused: Refused) -> None:
        if arrival.node and refused.reason is Reason.CARRIER_LOST:
            self._note_abandoned(attempt, arrival)
            return
        self._counters.attached(refused.reason)
        told = _named(arrival.refused or refused, arrival.proven)
        self._refusals.note(ENTRANCE, attempt.peer_address, told)
        fields = {"reason": refused.reason, "address": attempt.peer_address}
        if arrival.node:
            sentence = f"attach of node {arrival.node} failed: {refused.detail}"
            self._log_of_node(arrival.node, refused.reason.word, logging.WARNING, sentence, **fields)
            return
        left_out = self._failures.note(refused.reason, trio.current_time())
        if left_out is not None:
            sentence = f"attach of an unknown node failed: {refused.detail}"
            log_event(_log, logging.WARNING, sentence, **fields, left_out=left_out or None)

    def _note_abandoned(self, attempt: Attachment, arrival: PendingAttach) -> None:
        if attempt.steps.welcome is not None and arrival.held is None:
            sentence = f"node {arrival.node} may attach, and left; a check does that"
            self._log_of_node(arrival.node, "checked", logging.INFO, sentence)
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


def _retry_ms(refused: Refused) -> int:
    return _SHUT_OUT_RETRY_MS if refused.reason.retry is Retry.AFTER_REPAIR else _RETRY_MS


def _named(refused: Refused, proven: VerifiedCertificate | None) -> Refused:
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
