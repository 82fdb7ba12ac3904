"""Pings, silence and lateness of one session. No I/O, no clock: time comes in as ``now``.

1. The agent pings every interval, and often while streams move bytes or a pong is late. The server answers,
   and learns from each ping how soon the next one is due, so one ping serves both ends.
2. A silence of ``missed_pings`` intervals means that the carrier is dead. Because this process may have been
   paused, two checks in a row must find the silence, the second of them a second later or more.
3. An answer is late after ``response_timeout_seconds``: ``late_seconds``, or four round trips if they are
   longer. Lateness only makes the agent try another carrier.
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
_DEAD_RESPONSE_TIMEOUTS = 5
"""Least silence of a dead carrier, in response timeouts. A change of the radio cell takes one to three
seconds, and the carrier survives it. The wait costs nothing, because the agent tries other carriers
meanwhile."""
_CONFIRM_SECONDS = 1.0
"""Time between the check that finds a silence and the check that confirms the silence."""
_SAMPLE_GROUP_SECONDS = 0.5
"""Samples within this time count as one, which is the newest."""
_MOST_PINGS = 32
"""Unanswered pings that are remembered: enough for the longest silence that a session waits for."""
_MOST_ROUND_TRIP_SECONDS = 60.0
"""Longest round trip that a ping may report. With a larger one nothing would ever be late (RFC 6298: 60 s or
more)."""


class Liveness:
    """Liveness of the peer, as seen over the current carrier.

    ``pings`` is True at the agent, which sends the pings. The welcome and the profile hold the intervals.
    """

    __slots__ = (
        "_active_interval",
        "_active_seconds",
        "_dead_after_seconds",
        "_interval",
        "_is_silence_found",
        "_last_ping",
        "_late_seconds",
        "_missed_allowed",
        "_pings",
        "_profile",
        "_sampled_at",
        "_silence_extension",
        "_smoothed",
        "_smoothed_before",
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
        """When the newest packet arrived. ``SessionProtocol`` sets it."""
        self.bytes_at = -math.inf
        """When the newest numbered packet was sent or received. ``SessionProtocol`` sets it."""
        self.round_trip_seconds: float | None = None
        """Newest sample of the round trip."""
        self.response_timeout_seconds = limits.late_seconds
        """Time after which an answer is late."""
        self._late_seconds = limits.late_seconds
        self._profile = profile
        self._interval = welcome.ping_interval_ms / 1000
        self._missed_allowed = welcome.missed_pings
        self._pings = pings
        self._active_interval = min(self._interval, profile.active_ping_seconds)
        self._last_ping = -math.inf
        self._waiting: deque[tuple[int, float]] = deque()  # token and time of the pings without a pong
        self._token = 0
        self._smoothed = 0.0  # round trip; 0: no sample yet
        self._smoothed_before = 0.0  # before the newest group of samples
        self._sampled_at = -math.inf
        self._is_silence_found = False  # by the first of two checks
        self._silence_extension = 0.0
        self._expect_pings()

    # Carriers.

    def pause(self) -> None:
        """Forget the unanswered pings, because the carrier is lost."""
        self._waiting.clear()

    def start(self, now: float) -> None:
        """Begin anew on a new carrier, whose peer has just answered the attach."""
        self._waiting.clear()
        self.last_received_at = now
        self._last_ping = -math.inf
        self._expect_pings()

    # Pings and pongs.

    def ping(self, now: float, *, is_queued: bool) -> Ping | None:
        """Return the ping to send, and start the interval to the next ping.

        Returns None if a ping is queued already (``is_queued``) or too many are unanswered. Raises
        ``ProtocolError`` if a silence is confirmed.
        """
        if self._waiting:
            # Every packet comes from the peer's program, so any packet ends a silence, not only a pong.
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
        """Process a ping and the round trip in it, which the sender measured; 0 means no sample yet."""
        self._expect_pings()
        if round_trip_us:
            self._note_round_trip(round_trip_us / 1e6, now)

    def pong_received(self, token: int, now: float) -> None:
        """Process a pong; ignore the pong of a ping that is not waited for any more."""
        waiting = self._waiting
        if not waiting or not waiting[0][0] <= token <= waiting[-1][0]:
            return
        while waiting[0][0] < token:
            waiting.popleft()
        self._note_round_trip(now - waiting.popleft()[1], now)
        self._is_silence_found = False

    def _note_round_trip(self, sample: float, now: float) -> None:
        sample = min(sample, _MOST_ROUND_TRIP_SECONDS)
        self.round_trip_seconds = sample
        # Of pongs that arrive together after an outage, only the newest counts.
        if now >= self._sampled_at + _SAMPLE_GROUP_SECONDS:
            self._smoothed_before, self._sampled_at = self._smoothed, now
        before = self._smoothed_before or sample
        # A longer sample has the weight of RFC 6298, because one pong that was delayed by an outage must not
        # raise the timeout to half a minute. A shorter sample weighs more, because a slow path may recover.
        self._smoothed = before + (sample - before) / (8 if sample > before else 2)
        self.response_timeout_seconds = max(self._late_seconds, _LATE_ROUND_TRIPS * self._smoothed)

    # Lateness.

    def late_at(self, sent_at: float) -> float:
        """Return when the oldest unanswered packet or ping will be late; infinity if none is unanswered.

        At the server also the agent's next ping can be late. ``sent_at`` is when the oldest unacknowledged
        packet was sent; infinity if there is none.
        """
        since = min(sent_at, self._waiting[0][1]) if self._waiting else sent_at
        if not self._pings and self._interval:
            since = min(since, self._next_ping_expected())
        return since + self.response_timeout_seconds

    def late_since(self, sent_at: float, now: float) -> float:
        """Return when the oldest late packet or ping was sent; infinity if none is late."""
        since = min(sent_at, self._waiting[0][1]) if self._waiting else sent_at
        return since if now >= since + self.response_timeout_seconds else math.inf

    # Deadlines.

    def deadline(self) -> float:
        """Return when a ping is due (agent), or when a silence is long enough to be checked (server)."""
        if not self._interval:
            return math.inf
        if not self._pings:
            return self._silence_check_at()
        next_ping = self._last_ping + self._active_interval
        if self.bytes_at + self._profile.active_seconds >= next_ping:
            return next_ping
        if self._waiting:
            next_ping = max(next_ping, self._waiting[0][1] + self.response_timeout_seconds)
            return min(next_ping, self._last_ping + self._interval)
        return self._last_ping + self._interval

    def check(self, now: float) -> bool:
        """Return whether a ping is due; at the server check the silence and return False.

        Raises ``ProtocolError`` with ``PING_TIMEOUT`` if a silence is confirmed.
        """
        if now < self.deadline():
            return False
        if self._pings:
            return True
        self._confirm_silence(now - self.last_received_at)
        self._silence_extension = now - self._silence_check_at() + _CONFIRM_SECONDS
        return False

    def _silence_check_at(self) -> float:
        # The agent detects silence by its pings; the server waits a little longer than the agent.
        return self._next_ping_expected() + self._dead_after_seconds + self._silence_extension

    def _next_ping_expected(self) -> float:
        """Return when the agent's next ping is due; the interval is short while streams move bytes."""
        if self.bytes_at + self._active_seconds >= self.last_received_at:
            return max(self.last_received_at, self.bytes_at) + self._active_interval
        return self.last_received_at + self._interval

    def _expect_pings(self) -> None:
        """Compute anew how long the peer's pings may be absent."""
        self._is_silence_found, self._silence_extension = False, 0.0
        self._dead_after_seconds = self._dead_seconds()
        # The ends see the last byte at different times, so the server ends activity sooner than the agent.
        self._active_seconds = (
            self._profile.active_seconds - self._active_interval - self.response_timeout_seconds
        )

    def _dead_seconds(self) -> float:
        """Return how long a silence must last, while answers are due, until the carrier is dead."""
        timeout = self.response_timeout_seconds
        while_active = self._missed_allowed * self._active_interval + timeout
        least = _DEAD_RESPONSE_TIMEOUTS * timeout
        return min(self._missed_allowed * self._interval, max(while_active, least))

    def _confirm_silence(self, silence: float) -> None:
        """Declare the peer dead only if two checks in a row find silence."""
        if self._is_silence_found:
            raise ProtocolError(Reason.PING_TIMEOUT, f"no packet received for {silence:.0f} s")
        self._is_silence_found = True
