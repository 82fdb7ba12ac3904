"""How often one node may attach. No I/O, no clock.

Each new session ends another one and leaves events, audit and log lines behind. So a node has a few attaches
at once and then one every few seconds, and is refused before a session is made. Resumptions have a budget of
their own, larger than what an agent can use up on a link that fails all the time. Thus another program with
the same certificate cannot keep the agent from its session.
"""

from __future__ import annotations

import math

from tunnel_core.reasons import Reason
from tunnel_core.session.handshake import AttachRejected
from tunnel_core.wire.frames import Rejected
from tunnel_server.pki.enrolment.rate_limits import RequestRateLimits

ATTACHES, ATTACH_SECONDS = 10, 5.0
"""New sessions of one node. Each ends another one and leaves events, audit and log lines."""
RESUMES, RESUME_SECONDS = 60, 1.0
"""Resumptions of one node. An agent begins at most one attempt a second, so another program with the
certificate cannot use this up."""
_MAX_KEYS = 50_000
"""The nodes of several full servers; what is forgotten has its whole budget back."""


class AttachBudget:
    """The attaches of each node."""

    def __init__(self) -> None:
        self._new = RequestRateLimits(ATTACHES, ATTACH_SECONDS, _MAX_KEYS)
        self._resumed = RequestRateLimits(RESUMES, RESUME_SECONDS, _MAX_KEYS)

    def spend(self, node: str, now: float, *, resumes: bool) -> None:
        """One more attach of ``node``. Raise ``AttachRejected`` with the time to retry if it may not."""
        budgets = self._resumed if resumes else self._new
        wait = budgets.wait_seconds(node, now)
        if wait > 0:
            what = "resumed its session" if resumes else "begun a new session"
            detail = (
                f"node {node} has {what} too often; it may again in {math.ceil(wait)} s. If its agent"
                " does not restart all the time, another program has its certificate:"
                f" qanat-server node revoke {node}"
            )
            raise AttachRejected(Rejected(Reason.TOO_MANY_ATTACHES, detail, math.ceil(wait * 1000)))
        budgets.spend(node, now)
