"""Causes of refusals, resets and ends: one word each, the same on the wire, in logs, metrics and messages.

Each member's value is (wire code, HTTP status, category, meaning). Codes are the numbers of the enum
``Reason`` in ``proto/qanat/v1/tunnel.proto``; a code is never reused. ``docs/errors.md`` has the remedy for
each reason. A test compares the three files.

The category decides four effects: the exit code of a command (``cli/command_line.py``), the level of a log
line (``telemetry/logs.py``), whether the audit gets a line (``accounting/refusal_audit.py`` of the server),
and what an agent tries after a refused attach (``Reason.retry``). Each effect is one ``match`` over all
categories, so mypy reports a new category that lacks one of them. The HTTP status is finer than the category.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Mapping


class Category(enum.Enum):
    """The kind of a cause. A new reason takes the category whose effects it needs."""

    NORMAL = enum.auto()
    """An end without fault."""
    MISUSE = enum.auto()
    """The user wrote text that has no meaning, or more than one."""
    IDENTITY = enum.auto()
    """The peer did not prove an identity that is accepted here. The audit gets a line."""
    POLICY = enum.auto()
    """The identity is known, and a rule does not allow its request."""
    PERMANENT = enum.auto()
    """The certificate is not accepted until an administrator acts. The audit gets a line."""
    ABSENT = enum.auto()
    """The node is unknown, or has no agent attached."""
    TARGET = enum.auto()
    """The target behind the node cannot be reached, or does not answer as it should."""
    LIMIT = enum.auto()
    """A bound on number, rate or memory is reached. Room may come at any moment."""
    TEMPORARY = enum.auto()
    """A connection or the server was not available at this moment."""
    SESSION_OVER = enum.auto()
    """The session has ended, or another agent has its place."""
    PEER_FAULT = enum.auto()
    """The peer sent invalid data, or requested an object that does not exist."""
    INTERNAL = enum.auto()
    """This program, its disk or its authority failed."""


class Retry(enum.Enum):
    """The next step of an agent after a refused attach."""

    SAME_SESSION = enum.auto()
    """The same session again in a moment."""
    NEW_SESSION = enum.auto()
    """A new session, after the usual back-off. The old session cannot be resumed."""
    AFTER_REPAIR = enum.auto()
    """A new session, minutes later. No attach succeeds before an administrator has acted."""


class Reason(enum.Enum):
    """An enumerated cause. ``reason.word`` is the log word, the metric label and the wire name."""

    # Ends without fault.
    DONE = (1, 200, Category.NORMAL, "both sides finished")
    USER_LEFT = (2, 499, Category.NORMAL, "the user closed the connection before the answer was complete")
    TARGET_RESET = (3, 502, Category.NORMAL, "the target aborted its connection")
    IDLE_TIMEOUT = (4, 504, Category.NORMAL, "no byte moved for longer than the idle limit")
    # Requests that cannot be served.
    BAD_REQUEST = (10, 400, Category.MISUSE, "the request is malformed or ambiguous")
    HEAD_TOO_LARGE = (11, 431, Category.PEER_FAULT, "the request head is larger than the limit")
    HEAD_TIMEOUT = (12, 408, Category.PEER_FAULT, "the request head did not arrive in time")
    HANDSHAKE_FAILED = (13, 400, Category.PEER_FAULT, "the TLS handshake failed")
    UNAUTHENTICATED = (14, 401, Category.IDENTITY, "no valid client certificate was shown")
    WRONG_ROLE = (15, 403, Category.IDENTITY, "the certificate is for another role")
    WRONG_TRUST_DOMAIN = (16, 403, Category.IDENTITY, "the certificate is from another trust domain")
    SOURCE_NOT_ALLOWED = (17, 403, Category.POLICY, "the source address is not on the allow-list")
    UNKNOWN_NODE = (18, 404, Category.ABSENT, "no node of that name is known")
    AMBIGUOUS_NAME = (19, 409, Category.MISUSE, "the name means more than one node")
    NODE_NOT_ATTACHED = (20, 503, Category.ABSENT, "the node has no agent attached")
    UNKNOWN_SERVICE = (21, 404, Category.TARGET, "the node publishes no service of that name")
    TARGET_NOT_ALLOWED = (22, 403, Category.POLICY, "the agent's configuration does not allow the target")
    NOT_GRANTED = (130, 403, Category.POLICY, "no grant allows the user to do this")
    NOT_FOUND = (23, 404, Category.PEER_FAULT, "there is nothing at this path")
    METHOD_NOT_ALLOWED = (24, 405, Category.PEER_FAULT, "the method is not supported here")
    MISDIRECTED = (
        140,
        421,
        Category.PEER_FAULT,
        "the request is for a host that the certificate of its connection does not name",
    )
    # Dialling the target.
    NAME_NOT_RESOLVED = (30, 502, Category.TARGET, "the target's name could not be resolved at the node")
    DIAL_REFUSED = (31, 502, Category.TARGET, "the target refused the connection")
    DIAL_UNREACHABLE = (32, 502, Category.TARGET, "the target cannot be reached from the node")
    DIAL_TIMEOUT = (33, 504, Category.TARGET, "the target did not answer the dial in time")
    DIAL_FAILED = (34, 502, Category.TARGET, "the dial failed at the node")
    TARGET_PROTOCOL = (35, 502, Category.TARGET, "the target's answer is not valid for its protocol")
    TARGET_TIMEOUT = (36, 504, Category.TARGET, "the target did not answer in time")
    # Limits.
    TOO_MANY_CONNECTIONS = (40, 503, Category.LIMIT, "too many connections at this listener")
    TOO_MANY_FROM_SOURCE = (41, 429, Category.LIMIT, "too many unauthenticated connections from this address")
    TOO_MANY_STREAMS = (42, 503, Category.LIMIT, "too many streams are open on this session")
    TOO_MANY_SESSIONS = (43, 503, Category.LIMIT, "too many agents are attached to this server")
    NO_DESCRIPTORS = (44, 503, Category.LIMIT, "the process has no file descriptors left")
    STALLED_UNDER_PRESSURE = (45, 503, Category.LIMIT, "the stream was stalled while memory was short")
    OPEN_FLOOD = (46, 429, Category.LIMIT, "streams are opened and reset too fast")
    OPEN_TIMEOUT = (47, 504, Category.TARGET, "the agent did not answer the open in time")
    SEND_MEMORY_FULL = (
        48,
        503,
        Category.LIMIT,
        "the process holds as many unacknowledged bytes as its limit allows",
    )
    FRAME_FLOOD = (
        110,
        429,
        Category.PEER_FAULT,
        "frames that carry no data come too fast on one connection",
    )
    TOO_MANY_OF_USER = (49, 429, Category.LIMIT, "the user has reached a limit for one user")
    # Certificates and enrolment.
    BAD_CSR = (
        50,
        400,
        Category.PEER_FAULT,
        "the certificate request is malformed, or asks for a certificate that is never issued",
    )
    WEAK_KEY = (51, 400, Category.PEER_FAULT, "the key is too weak, or of a kind that is not accepted")
    CSR_NAME_MISMATCH = (
        52,
        403,
        Category.POLICY,
        "the certificate request names another identity than its sender's",
    )
    TOKEN_WRONG = (53, 401, Category.POLICY, "the token is not known here")
    TOKEN_EXPIRED = (54, 403, Category.POLICY, "the token has expired")
    TOKEN_USED_UP = (55, 403, Category.POLICY, "the token was used as often as it may be")
    TOKEN_REVOKED = (56, 403, Category.POLICY, "the token was revoked")
    TOKEN_NAME_MISMATCH = (57, 403, Category.POLICY, "the token is for other nodes")
    TOKEN_REPLAYED = (58, 403, Category.POLICY, "the node joined with this token before, with another key")
    REVOKED = (59, 403, Category.PERMANENT, "the certificate, or the name in it, was revoked")
    TOO_MANY_ENROLMENTS = (
        100,
        503,
        Category.LIMIT,
        "too many certificate requests are in progress",
    )
    TOO_MANY_GUESSES = (101, 429, Category.LIMIT, "too many wrong tokens came from this address")
    CERTIFICATE_EXPIRED = (102, 403, Category.PERMANENT, "the certificate has expired")
    CERTIFICATE_UNUSABLE = (
        141,
        503,
        Category.INTERNAL,
        "a certificate of the server, or its key, cannot be used",
    )
    ROOT_RETIRED = (103, 403, Category.PERMANENT, "the root of the certificate is no longer trusted")
    # The session and its carriers.
    SESSION_LOST = (60, 502, Category.ABSENT, "the session with the agent was lost")
    PING_TIMEOUT = (61, 504, Category.SESSION_OVER, "the other end stopped answering pings")
    CARRIER_LOST = (62, 502, Category.TEMPORARY, "the carrier broke")
    TAKEN_OVER = (63, 502, Category.SESSION_OVER, "a newer session of the same node took over")
    SERVER_STOPPING = (64, 503, Category.TEMPORARY, "the server is stopping")
    AGENT_STOPPING = (65, 503, Category.SESSION_OVER, "the agent is stopping")
    ATTACH_TIMEOUT = (66, 408, Category.TEMPORARY, "the attach was not completed in time")
    STALE_ATTEMPT = (67, 409, Category.TEMPORARY, "a newer attempt of the same session was already used")
    UNKNOWN_SESSION = (
        68,
        404,
        Category.SESSION_OVER,
        "the server does not know the session: it restarted, or grace was over",
    )
    PEER_STALLED = (69, 504, Category.SESSION_OVER, "the other end answers pings but acknowledges nothing")
    GRACE_EXPIRED = (70, 504, Category.SESSION_OVER, "the agent did not attach again within the grace")
    AGENT_RESTARTED = (71, 502, Category.SESSION_OVER, "the agent restarted and lost its session")
    SESSION_MISMATCH = (
        72,
        403,
        Category.IDENTITY,
        "the session belongs to another node, or its secret is wrong",
    )
    DUPLICATE_NODE = (73, 409, Category.SESSION_OVER, "two agents attach with the certificate of one node")
    TOO_MANY_ATTACHES = (74, 429, Category.LIMIT, "agents attach too often with the certificate of one node")
    # Faults of the peer.
    MALFORMED_PACKET = (80, 400, Category.PEER_FAULT, "a packet could not be decoded")
    PROTOCOL_ERROR = (81, 400, Category.PEER_FAULT, "a frame is not allowed in this state")
    UNKNOWN_FRAME = (82, 400, Category.PEER_FAULT, "a frame of an unknown kind arrived")
    VERSION_MISMATCH = (83, 400, Category.PEER_FAULT, "the two ends share no protocol version")
    CREDIT_OVERRUN = (84, 400, Category.PEER_FAULT, "more bytes were sent than the credit allowed")
    ACK_OF_UNSENT = (85, 400, Category.PEER_FAULT, "a packet that was never sent was acknowledged")
    DATA_AFTER_END = (86, 400, Category.PEER_FAULT, "data arrived after the end of the stream")
    DATA_GAP = (87, 400, Category.PEER_FAULT, "data is missing before the offset that arrived")
    STREAM_NEVER_OPENED = (88, 400, Category.PEER_FAULT, "a frame names a stream that was never opened")
    NUMBER_OUT_OF_RANGE = (
        120,
        400,
        Category.PEER_FAULT,
        "a number from the other end is out of its range",
    )
    TLS_TOO_OLD = (89, 400, Category.PEER_FAULT, "the TLS version is older than this listener allows")
    # The server's store and authority.
    STORE_FULL = (90, 507, Category.INTERNAL, "the disk that holds the server's store is full")
    STORE_FAILED = (91, 503, Category.INTERNAL, "the server's store cannot be read or written")
    AUDIT_FAILED = (
        92,
        503,
        Category.INTERNAL,
        "the action could not be written to the audit, so it was not done",
    )
    ROTATION_REFUSED = (93, 409, Category.POLICY, "the authority is not ready for this step")
    AUTHORITY_UNUSABLE = (94, 503, Category.INTERNAL, "the certificate authority cannot be used")
    # Errors of this program.
    INTERNAL_ERROR = (99, 500, Category.INTERNAL, "an error inside Qanat; the log has the traceback")

    @property
    def code(self) -> int:
        """The number on the wire."""
        return self.value[0]

    @property
    def status(self) -> int:
        """The HTTP status with which an entrance answers."""
        return self.value[1]

    @property
    def meaning(self) -> str:
        """The meaning, as the second half of a sentence."""
        return self.value[3]

    @property
    def category(self) -> Category:
        """The kind of cause, which decides the effects."""
        return self.value[2]

    @property
    def retry(self) -> Retry:
        """The next step of an agent after an attach that was refused for this reason."""
        match self.category:
            case Category.TEMPORARY | Category.LIMIT | Category.INTERNAL:
                return Retry.SAME_SESSION
            case Category.PERMANENT:
                return Retry.AFTER_REPAIR
            case (
                Category.NORMAL
                | Category.MISUSE
                | Category.IDENTITY
                | Category.POLICY
                | Category.ABSENT
                | Category.TARGET
                | Category.SESSION_OVER
                | Category.PEER_FAULT
            ):
                return Retry.NEW_SESSION
            case _ as never:
                typing.assert_never(never)

    @property
    def word(self) -> str:
        """The log word and metric label, for example ``node_not_attached``."""
        return self.name.lower()


_BY_CODE = {reason.code: reason for reason in Reason}


def reason_from_code(code: int) -> Reason:
    """Return the reason with this wire code; an unknown code of a later version is ``PROTOCOL_ERROR``."""
    return _BY_CODE.get(code, Reason.PROTOCOL_ERROR)


OF_A_STREAM = frozenset(
    {
        *(Reason.USER_LEFT, Reason.TARGET_RESET, Reason.IDLE_TIMEOUT),
        *(Reason.BAD_REQUEST, Reason.HEAD_TOO_LARGE, Reason.HEAD_TIMEOUT, Reason.HANDSHAKE_FAILED),
        *(Reason.UNKNOWN_SERVICE, Reason.TARGET_NOT_ALLOWED),
        *(Reason.NAME_NOT_RESOLVED, Reason.DIAL_REFUSED, Reason.DIAL_UNREACHABLE, Reason.DIAL_TIMEOUT),
        *(Reason.DIAL_FAILED, Reason.TARGET_PROTOCOL, Reason.TARGET_TIMEOUT),
        *(Reason.TOO_MANY_STREAMS, Reason.NO_DESCRIPTORS, Reason.STALLED_UNDER_PRESSURE),
        *(Reason.SEND_MEMORY_FULL, Reason.AGENT_STOPPING, Reason.SESSION_LOST),
        *(Reason.PROTOCOL_ERROR, Reason.CREDIT_OVERRUN, Reason.DATA_AFTER_END, Reason.DATA_GAP),
        Reason.INTERNAL_ERROR,
    }
)
"""Reasons that an agent may send for the end of a stream.

Only the server may send the other reasons, because they concern identity, policy or the server's own limits.
"""
OF_A_SESSION = OF_A_STREAM | {
    *(Reason.OPEN_FLOOD, Reason.PING_TIMEOUT, Reason.CARRIER_LOST, Reason.PEER_STALLED),
    *(Reason.UNKNOWN_SESSION, Reason.GRACE_EXPIRED, Reason.MALFORMED_PACKET, Reason.UNKNOWN_FRAME),
    *(Reason.VERSION_MISMATCH, Reason.ACK_OF_UNSENT, Reason.STREAM_NEVER_OPENED, Reason.NUMBER_OUT_OF_RANGE),
}
"""Reasons that an agent may send for the end of its session."""


class Refused(Exception):  # noqa: N818 - named by what happened, as users read it
    """Raised when a request is refused. ``detail`` is a sentence for the user: actor, cause, remedy.

    ``who`` names the verified node, user or token for the log; empty if none is verified.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or reason.meaning
        self.who: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"{self.reason.word}: {self.detail}"
