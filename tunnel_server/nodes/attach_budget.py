"""Rate limit of the attaches of one node. No I/O, no clock.

Each new session ends an older one and leaves events, audit lines and log lines behind. A node may therefore
attach a few times at once and then once every few seconds. The server refuses an attach before it makes a
session. Resumptions have a separate budget, which is larger than an agent can use up on a link that fails all
the time. So another program with the same certificate cannot use up the budget that the agent needs.
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
"""Resumptions of one node. An agent begins at most one attempt a second, so it never uses them up. Another
program cannot use them up, because it lacks the secret of the session."""
_MAX_KEYS = 50_000
"""The nodes of several full servers. A node whose key is dropped gets its whole budget back."""


class AttachBudget:
    """Counter of the new sessions and the resumptions of each node."""

    def __init__(self) -> None:
        self._new = RequestRateLimits(ATTACHES, ATTACH_SECONDS, _MAX_KEYS)
        self._resumed = RequestRateLimits(RESUMES, RESUME_SECONDS, _MAX_KEYS)

    def spend(self, node: str, now: float, *, resumes: bool) -> None:
        """Count an attach of ``node`` at ``now`` (monotonic seconds).

        Raises ``AttachRejected`` with the time to retry if the budget is used up.
        """
        budgets = self._resumed if resumes else self._new
        wait = budgets.wait_seconds(node, now)
        if wait > 0:
            action = "resumed its session" if resumes else "begun a new session"
            detail = (
                f"node {node} has {action} too often; it may again in {math.ceil(wait)} s. If its agent"
                " does not restart all the time, another program has its certificate:"
                f" qanat-server node revoke {node}"
            )
            raise AttachRejected(Rejected(Reason.TOO_MANY_ATTACHES, detail, math.ceil(wait * 1000)))
        budgets.spend(node, now)
