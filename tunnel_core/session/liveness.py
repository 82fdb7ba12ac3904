"""Pings, silence and lateness of one session. No I/O, no clock: time comes in as ``now``.

1. The agent pings every interval, and often while streams move bytes or a pong is late. The server answers,
   and learns from each ping how soon the next one is due, so one ping serves both ends.
2. A silence of some of these intervals means that the carrier is dead. This process may have been paused
   itself, so two checks in a row must find the silence; a second lies between them.
3. What waits for its answer longer than ``response_timeout_seconds`` is late: ``late_seconds`` or four round
   trips. That is a reason to look for another carrier, and nothing more.
"""

from __future__ import annotations

import math
from collections import deque

from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason
from tunnel_core.session.profiles import Profile
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Ping, Welcome

_LATE_ROUND_TRIPS = 4
_DEAD_PATIENCES = 5
"""Times what makes an answer late: a change of cells takes a second or three, and it is the same link after.
Waiting costs nothing, as other carriers are tried meanwhile; it is only not called grace yet."""
_CONFIRM_SECONDS = 1.0
"""Between the check that finds a silence and the one that confirms it."""
_MOMENT_SECONDS = 0.5
_MOST_PINGS = 32
"""Unanswered pings that are remembered: enough for the longest silence that a session waits for."""
_MOST_ROUND_TRIP_SECONDS = 60.0
"""Longest round trip that a ping may report. With a larger one nothing would ever be late (RFC 6298: 60 s or
more)."""


class Liveness:
    """What one end knows of the other's life on the carrier of the moment.

    ``pings``: this end sends the pings (the agent). The welcome and the profile hold the intervals.
    """

    __slots__ = (
        "_busy_seconds",
        "_dead",
        "_interval",
        "_is_doubted",
        "_last_ping",
        "_late_seconds",
        "_missed_allowed",
        "_often",
        "_pings",
        "_profile",
        "_sampled_at",
        "_silence_extension",
        "_smooth",
        "_smooth_before",
        "_token",
        "_waiting",
        "bytes_at",
        "last_received_at",
        "response_timeout_seconds",
        "round_trip_seconds",
    )

    def __init__(
        self, limits: Limits, welcome: Welcome, profile: Profile, *, pings: bool, now: float
    ) -> None:
        self.last_received_at = now
        """When the carrier last brought anything. The session sets it."""
        self.bytes_at = -math.inf
        """When a stream last moved anything, either way. The session sets it."""
        self.round_trip_seconds: float | None = None
        """The newest sample."""
        self.response_timeout_seconds = limits.late_seconds
        """How long an answer may take before it is late."""
        self._late_seconds = limits.late_seconds
        self._profile = profile
        self._interval = welcome.ping_interval_ms / 1000
        self._missed_allowed = welcome.missed_pings
        self._pings = pings
        self._often = min(self._interval, profile.active_ping_seconds)
        self._last_ping = -math.inf
        self._waiting: deque[tuple[int, float]] = deque()  # token and time of the pings without a pong
        self._token = 0
        self._smooth = 0.0  # round trip; 0: none yet
        self._smooth_before = 0.0  # without the samples of this moment
        self._sampled_at = -math.inf
        self._is_doubted = False  # one check has found the silence
        self._silence_extension = 0.0
        self._expect_pings()

    # Carriers.

    def pause(self) -> None:
        """There is no carrier: no answer comes any more."""
        self._waiting.clear()

    def start(self, now: float) -> None:
        """There is a new carrier, whose peer is alive."""
        self._waiting.clear()
        self.last_received_at = now
        self._last_ping = -math.inf
        self._expect_pings()

    # Pings and pongs.

    def ping(self, now: float, *, is_queued: bool) -> Ping | None:
        """Return the ping to send, and count the next one from now.

        None if one is about to leave already (``is_queued``), or if enough wait for an answer. Raises
        ``ProtocolError`` if a silence is confirmed.
        """
        if self._waiting:
            # Whatever arrives comes from the peer's program: only silence counts.
            silence = now - max(self._waiting[0][1], self.last_received_at)
            if silence >= self._dead_seconds():
                self._confirm_silence(silence)
        self._last_ping = now
        if is_queued or len(self._waiting) >= _MOST_PINGS:
            return None
        self._token += 1
        self._waiting.append((self._token, now))
        return Ping(self._token, int((self.round_trip_seconds or 0) * 1e6))

    @property
    def is_asking(self) -> bool:
        """Whether a ping waits for its pong."""
        return bool(self._waiting)

    def ping_received(self, round_trip_us: int, now: float) -> None:
        """A ping came, with the round trip that its sender measured; 0: none yet."""
        self._expect_pings()
        if round_trip_us:
            self._note_round_trip(round_trip_us / 1e6, now)

    def pong_received(self, token: int, now: float) -> None:
        """A pong came. One whose ping was given up says nothing."""
        waiting = self._waiting
        if not waiting or not waiting[0][0] <= token <= waiting[-1][0]:
            return
        while waiting[0][0] < token:
            waiting.popleft()
        self._note_round_trip(now - waiting.popleft()[1], now)
        self._is_doubted = False

    def _note_round_trip(self, sample: float, now: float) -> None:
        sample = min(sample, _MOST_ROUND_TRIP_SECONDS)
        self.round_trip_seconds = sample
        # Of the pongs that come together after an outage the newest counts alone.
        if now >= self._sampled_at + _MOMENT_SECONDS:
            self._smooth_before, self._sampled_at = self._smooth, now
        before = self._smooth_before or sample
        # RFC 6298's weight for what is longer: one pong that sat out an outage must not make us patient for
        # half a minute. What is shorter counts for more, as a link that was slow need not be so again.
        self._smooth = before + (sample - before) / (8 if sample > before else 2)
        self.response_timeout_seconds = max(self._late_seconds, _LATE_ROUND_TRIPS * self._smooth)

    # What is late.

    def late_at(self, sent_at: float) -> float:
        """When something will be late, if nothing changes.

        ``sent_at`` is when the oldest packet that waits for its confirmation was sent; infinity for none.
        """
        since = min(sent_at, self._waiting[0][1]) if self._waiting else sent_at
        if not self._pings and self._interval:
            since = min(since, self._next_ping_expected())
        return since + self.response_timeout_seconds

    def late_since(self, sent_at: float, now: float) -> float:
        """When the oldest of what is late was sent; infinity if nothing is."""
        since = min(sent_at, self._waiting[0][1]) if self._waiting else sent_at
        return since if now >= since + self.response_timeout_seconds else math.inf

    # What is due.

    def deadline(self) -> float:
        """When a ping is due, or a silence has lasted long enough."""
        if not self._interval:
            return math.inf
        if not self._pings:
            return self._silence_ends()
        soon = self._last_ping + self._often
        if self.bytes_at + self._profile.active_seconds >= soon:
            return soon
        if self._waiting:
            soon = max(soon, self._waiting[0][1] + self.response_timeout_seconds)
            return min(soon, self._last_ping + self._interval)
        return self._last_ping + self._interval

    def check(self, now: float) -> bool:
        """Return whether a ping is due. At the server none is; there the silence is checked.

        Raises ``ProtocolError``, ``PING_TIMEOUT``, if a silence is confirmed.
        """
        if now < self.deadline():
            return False
        if self._pings:
            return True
        self._confirm_silence(now - self.last_received_at)
        self._silence_extension = now - self._silence_ends() + _CONFIRM_SECONDS
        return False

    def _silence_ends(self) -> float:
        # The pinging end finds silence by its pings; this end waits a little longer than they do.
        return self._next_ping_expected() + self._dead + self._silence_extension

    def _next_ping_expected(self) -> float:
        """When the agent's next ping is due: soon while streams move bytes."""
        if self.bytes_at + self._busy_seconds >= self.last_received_at:
            return max(self.last_received_at, self.bytes_at) + self._often
        return self.last_received_at + self._interval

    def _expect_pings(self) -> None:
        """Compute how long the peer's pings may stay out from here on."""
        self._is_doubted, self._silence_extension = False, 0.0
        self._dead = self._dead_seconds()
        # The ends see the last byte at different times: near the end of activity nothing is expected soon.
        self._busy_seconds = self._profile.active_seconds - self._often - self.response_timeout_seconds

    def _dead_seconds(self) -> float:
        """Return how long a silence must be in which answers are due."""
        patience = self.response_timeout_seconds
        often = self._missed_allowed * self._often + patience
        return min(self._missed_allowed * self._interval, max(often, _DEAD_PATIENCES * patience))

    def _confirm_silence(self, silence: float) -> None:
        """Declare the peer dead only if two checks in a row find silence."""
        if self._is_doubted:
            raise ProtocolError(Reason.PING_TIMEOUT, f"nothing heard for {silence:.0f} s")
        self._is_doubted = True
