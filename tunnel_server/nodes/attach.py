"""Accept the carriers of agents: a carrier with a verified node certificate begins or resumes a session.

1. The server refuses an invalid certificate at the call, before it waits for a hello.
2. An attach in progress holds a connection, so each identity has few (``pending_attaches.py``).
   A call without a hello ends after two seconds, unless the call is the newest of its identity.
3. The server offers a session only to a node that did not attach too often lately (``attach_budget.py``).
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
from tunnel_core.kept_errors import without_frames
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
from tunnel_server.accounting.write_budget import WRITE_SECONDS
from tunnel_server.auth.credential_watch import CredentialWatch, WatchEntry
from tunnel_server.nodes.announced import checked_hello
from tunnel_server.nodes.pending_attaches import PendingAttach, PendingAttaches, identity_of
from tunnel_server.nodes.registry import Nodes
from tunnel_server.nodes.sessions import Sessions

_log = logging.getLogger("qanat.attach")

ENTRANCE = "agents"
_RETRY_MS = 5000
_REPAIR_RETRY_MS = 300_000
"""Retry time for agents that can attach only after a person has acted."""
_FAREWELL_SECONDS = 2.5
"""Time for all agents together to receive the end of their sessions; each session gives up in two seconds."""


@dataclass(frozen=True, slots=True)
class AttachSettings:
    """Settings that all attaches share. ``max_agents`` bounds the nodes that are attached at once."""

    trust_domain: str
    max_agents: int
    limits: Limits
    max_pending: int = 2048
    """Attaches under way over all identities. Each holds a connection for 10 s at most."""


class SessionAcceptor:
    """Accept carriers and run the sessions that they carry. ``counters`` counts every outcome.

    ``credential_watch`` ends the sessions whose certificates become invalid. ``refusals`` records refused
    attaches. ``trust_bundle`` returns the roots (PEM) to send to agents; if it is empty, none are sent.
    """

    def __init__(
        self,
        settings: AttachSettings,
        nodes: Nodes,
        pool: CreditPool,
        nursery: trio.Nursery,
        counters: Counters,
        *,
        credential_watch: CredentialWatch,
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
        self._credential_watch = credential_watch
        self._refusals = refusals
        self._trust_bundle = trust_bundle
        self._failures = LineLimiter(longest_seconds=WRITE_SECONDS)  # keys are (node, reason)
        self._pending = PendingAttaches(settings.limits.max_attaches_per_identity)
        self._sessions = Sessions()
        self._watched: dict[Session, WatchEntry] = {}  # includes ended sessions that still inform their agent

    def take(self, carrier: Carrier) -> None:
        """Begin the attach of a new carrier. The carrier's server calls this; it never blocks or raises."""
        certificate, refused = self._identify(carrier)
        refused = refused or self._why_invalid(certificate)
        pending = PendingAttach(
            identity_of(certificate, refused, carrier.peer.leaf_pem), certificate, refused=refused
        )

        def offer(hello: Hello) -> Welcome | Rejected:
            try:
                return self._answer_hello(pending, hello)
            except AttachRejected as rejected:
                return Rejected(rejected.reason, rejected.detail, int(rejected.retry_after_seconds * 1000))
            except Refused as refusal:
                pending.refused = without_frames(refusal)
                return Rejected(refusal.reason, refusal.detail, _retry_ms(refusal))

        attachment = Attachment(carrier, ServerHandshake(offer), self._on_use)
        oldest = self._pending.add(attachment, pending)
        if oldest is not None:
            most = self._settings.limits.max_attaches_per_identity
            detail = f"more than {most} attaches with one certificate are in progress; the oldest ends"
            oldest.displace(Refused(Reason.TOO_MANY_ATTACHES, detail))
        refused = refused or self._why_no_room()
        if refused is not None:
            pending.refused = refused
            attachment.refuse(refused, _retry_ms(refused))
        self._nursery.start_soon(self._run_attach, attachment, pending)

    def _why_invalid(self, certificate: VerifiedCertificate | None) -> Refused | None:
        """Return why the certificate is not valid now, for example because it is revoked; else None."""
        try:
            self._credential_watch.require(certificate)
        except Refused as refused:
            return without_frames(refused)
        return None

    def _why_no_room(self) -> Refused | None:
        if len(self._pending) > self._settings.max_pending:
            return Refused(Reason.TOO_MANY_SESSIONS, "too many agents are attaching at this moment")
        return None

    def _identify(self, carrier: Carrier) -> tuple[VerifiedCertificate | None, Refused | None]:
        domain = self._settings.trust_domain
        try:
            leaf = carrier.peer.leaf_pem
            return proven_leaf(leaf, usage=Usage.CLIENT, role=Role.NODE, trust_domain=domain), None
        except Refused as refused:
            return None, without_frames(refused)
        except Exception:  # one malformed certificate must not end the server
            _log.exception("the certificate of %s could not be read", carrier.peer.address)
            return None, Refused(Reason.INTERNAL_ERROR)

    # Hello: the server offers a session and takes nothing over yet. Packets move after `use`.

    def _answer_hello(self, pending: PendingAttach, hello: Hello) -> Welcome:
        """Return the answer to a hello. Raises ``Refused`` or ``AttachRejected``."""
        self._credential_watch.require(pending.certificate)
        if hello.version != VERSION:
            detail = f"this server speaks version {VERSION}, the agent {hello.version}; update the older one"
            raise Refused(Reason.VERSION_MISMATCH, detail)
        pending.held = self._sessions.maybe_find(pending.node, hello)
        if pending.held is not None:
            self._nodes.spend_attach(pending.node, resumes=True)
            session = pending.held.session
            welcome = self._welcome(
                hello, pending.node, session.welcome.session, SessionSecret(), session.received
            )
            welcome = welcome._replace(resumed=True, used=hello.use)
            roots = self._trust_bundle()
            return welcome if session.welcome.trust_bundle == roots else welcome._replace(trust_bundle=roots)
        self._check_room(pending.node)
        self._nodes.check_duplicate(pending.node, hello)
        self._nodes.spend_attach(pending.node, resumes=False)
        session_id, secret = secrets.token_bytes(16), SessionSecret(secrets.token_bytes(32))
        return self._welcome(hello, pending.node, session_id, secret)

    def _check_room(self, node: str) -> None:
        if self.stopping:
            raise Refused(Reason.SERVER_STOPPING)
        known = self._nodes.find_exact(node)
        most = self._settings.max_agents
        if (known is None or known.session is None) and self._nodes.attached_count >= most:
            detail = f"{most} agents are attached, the most that [agents] max of the server allows"
            raise Refused(Reason.TOO_MANY_SESSIONS, detail)

    def _welcome(
        self, hello: Hello, node: str, session_id: bytes, secret: SessionSecret, have: int = 0
    ) -> Welcome:
        """Return a welcome. ``secret`` and the trust bundle are sent for a new session only."""
        limits = self._settings.limits
        return Welcome(
            version=VERSION,
            session=session_id,
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

    # Use: the agent has chosen this carrier, and the session moves to it.

    def _on_use(self, attachment: Attachment) -> None:
        """Move the session to this carrier. Raises ``Refused`` if the agent's choice comes too late."""
        pending = self._pending.find(attachment)
        handshake = attachment.handshake
        assert isinstance(handshake, ServerHandshake)
        assert handshake.hello is not None and handshake.use is not None and pending.certificate is not None
        self._credential_watch.require(pending.certificate)  # it may have been revoked since the hello
        hello = self._check_hello(pending.node, handshake.hello)
        if pending.held is None:
            pending.session = self._begin(attachment, hello, pending.certificate)
        else:
            self._sessions.use(pending.held, handshake.use.attempt)
            session = pending.held.session
            session.hello = hello
            self._watched[session].renew(pending.certificate)
            session.move_to(attachment, max(hello.have, handshake.use.have))
        self._pending.discard(attachment)

    def _check_hello(self, node: str, received: Hello) -> Hello:
        """Return the hello without its invalid services, and log how many were left out."""
        hello, left_out = checked_hello(received)
        if left_out:
            sentence = (
                f"{left_out} services of node {node} are left out: their names or protocols are not valid"
            )
            self._log_of_node(node, "services", logging.WARNING, sentence)
        return hello

    def _begin(self, attachment: Attachment, hello: Hello, certificate: VerifiedCertificate) -> Session:
        node = certificate.identity.name
        # Between welcome and use another node may have taken the last place, or the server may have begun to
        # stop.
        self._check_room(node)
        session = Session(
            hello,
            attachment.welcome,
            opener=True,
            node=node,
            limits=self._settings.limits,
            pool=self._pool,
            send_pool=self.send_pool,
            cap=TokenBucket(hello.max_bytes_per_second) if hello.max_bytes_per_second else None,
            on_event=self._on_event,
        )
        session.peer_address = attachment.peer_address
        self._nodes.attach(node, session)
        self._sessions.add(session, hello.attempt)
        self._watched[session] = self._credential_watch.register(
            certificate, lambda refused: session.end(refused.reason, refused.detail)
        )
        session.move_to(attachment, 0)
        self._counters.attached()
        self._log_session(session, "attached", f"node {node} attached", software=session.software)
        return session

    def _on_event(self, session: Session, event: SessionEvent) -> None:
        if event is SessionEvent.RESUMED:
            self._nodes.note_resumed(session)
            self._counters.resumed()
            sentence = f"node {session.node} resumed its session"
            self._log_session(session, "resumed", sentence, streams=len(session.streams))
        elif event is SessionEvent.LOST and session.lost is not None:
            loss = session.lost
            self._nodes.note_lost(session, loss)
            sentence = f"the link to node {session.node} was lost: {loss.detail}; its streams wait"
            self._log_session(session, "lost", sentence, reason=loss.reason, streams=len(session.streams))

    def _log_session(self, session: Session, kind: str, sentence: str, **fields: object) -> None:
        known = {"node": session.node, "session": session.session_id, "address": session.peer_address}
        self._log_of_node(session.node, kind, logging.INFO, sentence, **known, **fields)

    def _log_of_node(self, node: str, kind: str, level: int, sentence: str, /, **fields: object) -> None:
        """Log a line about a node, unless the node has used up its budget of lines of this kind.

        A session's lines have a burst, because a second one within a second is news and no repetition.
        """
        left_out = self._nodes.writes.note((node, f"line {kind}"), trio.current_time())
        if left_out is not None:
            log_event(_log, level, sentence, **fields, left_out=left_out or None)

    # One task runs an attach, and then the session that the attach began.

    async def _run_attach(self, attachment: Attachment, pending: PendingAttach) -> None:
        limits = self._settings.limits
        try:
            is_newest = partial(self._pending.is_newest, attachment)
            await attachment.settle(limits.attach_timeout_seconds, limits.hello_timeout_seconds, is_newest)
        except Refused as refused:
            self._note_failure(attachment, pending, refused)
        except Exception:
            _log.exception("the attach of node %s failed", pending.node)
            self._note_failure(attachment, pending, Refused(Reason.INTERNAL_ERROR))
        finally:
            self._pending.discard(attachment)
        if pending.session is not None:
            await self._run_session(pending.session)

    async def _run_session(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            _log.exception("the session of node %s failed", session.node)
        finally:
            self._note_end(session)

    def _note_end(self, session: Session) -> None:
        reason, detail = session.ended or (Reason.SESSION_LOST, Reason.SESSION_LOST.meaning)
        self._watched.pop(session).remove()
        self._sessions.discard(session)
        self._counters.session_ended(reason)
        self._nodes.detach(session, reason, detail)
        self._log_session(session, "detached", f"node {session.node} detached: {detail}", reason=reason)

    def _note_failure(self, attachment: Attachment, pending: PendingAttach, refused: Refused) -> None:
        if pending.node and refused.reason is Reason.CARRIER_LOST:
            self._note_abandoned(attachment, pending)
            return
        self._counters.attached(refused.reason)
        audited = _with_identity(pending.refused or refused, pending.certificate)
        self._refusals.note(ENTRANCE, attachment.peer_address, audited)
        left_out = self._failures.note((pending.node, refused.reason), trio.current_time())
        if left_out is not None:
            name = f"node {pending.node}" if pending.node else "an unknown node"
            fields = {"reason": refused.reason, "address": attachment.peer_address}
            sentence = f"attach of {name} failed: {refused.detail}"
            log_event(_log, logging.WARNING, sentence, **fields, left_out=left_out or None)

    def _note_abandoned(self, attachment: Attachment, pending: PendingAttach) -> None:
        if attachment.handshake.welcome is not None and pending.held is None:
            sentence = f"node {pending.node} may attach, and left; a check does that"
            self._log_of_node(pending.node, "checked", logging.INFO, sentence)
            return
        self._counters.attach_abandoned()
        sentence = f"node {pending.node} abandoned an attach; of several attempts an agent keeps one"
        log_event(_log, logging.DEBUG, sentence, address=attachment.peer_address)

    @property
    def stream_count(self) -> int:
        """The number of open streams in all sessions."""
        return sum(len(session.streams) for session in self._watched)

    def drain(self, deadline_seconds: float) -> None:
        """Accept no new sessions and no new streams. Resumptions are still accepted.

        Each agent receives ``deadline_seconds``, the time that its streams have left.
        """
        self.stopping = True
        for session in self._watched:
            session.drain(deadline_seconds)

    async def wait_no_streams(self) -> None:
        """Wait until no stream is open. For one caller, after ``drain``."""
        for session in list(self._watched):
            await session.wait_no_streams()

    async def end_all(self, reason: Reason) -> None:
        """End every session, and wait up to 2.5 s until the agents acknowledge the end."""
        sessions = list(self._watched)
        for session in sessions:
            session.end(reason)
        with trio.move_on_after(_FAREWELL_SECONDS):
            for session in sessions:
                await session.wait_given_up()


def _retry_ms(refused: Refused) -> int:
    return _REPAIR_RETRY_MS if refused.reason.retry is Retry.AFTER_REPAIR else _RETRY_MS


def _with_identity(refused: Refused, certificate: VerifiedCertificate | None) -> Refused:
    """Return the refusal with the identity of the certificate, if the carrier has proven one."""
    if certificate is None or isinstance(refused, IdentityError):
        return refused
    return IdentityError.of(certificate, refused)


def _ping_interval(limits: Limits, hello: Hello) -> float:
    """Return the configured interval in seconds; on a metered link at least that of the metered profile."""
    seconds = limits.ping_interval_seconds
    if not hello.metered:
        return seconds
    return max(seconds, profile_of(metered=True).idle_ping_seconds)
