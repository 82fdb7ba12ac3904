"""The profiles keep their budgets of bytes, by the measured size of a ping."""

from __future__ import annotations

import math
from collections import deque

import pytest

from tests.support.fakes.memory_link import welcome
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.reasons import Reason
from tunnel_core.session.profiles import PROFILES, profile_of
from tunnel_core.session.protocol import SessionProtocol
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Packet, Ping, Pong

IPV4_TCP, IPV6_TCP = 52, 72
"""Headers of a packet: IP, and TCP with time stamps."""
TLS_RECORD, MESSAGE, WINDOW_UPDATES = 22, 14, 26
"""Bytes around a packet of Qanat (TLS 1.3; HTTP/2 and gRPC), and what gRPC adds to a ping."""
ROUND_TRIP_SECONDS = 0.1
LATE_SECONDS = 1.0
SHORTEST_NAT_SECONDS = 240


class IdleLink:
    """An attached session without streams, in virtual time, and each packet that its ends send."""

    def __init__(self, *, metered: bool) -> None:
        limits, self.profile = Limits(), profile_of(metered=metered)
        offer = welcome(limits)._replace(ping_interval_ms=int(self.profile.idle_ping_seconds * 1000))
        self.now = 1000.0
        self.server, self.agent = (
            SessionProtocol(
                Mux(limits, CreditPool(limits.credit_pool), opener=not pings),
                limits,
                offer,
                self.profile,
                pings=pings,
                now=self.now,
            )
            for pings in (False, True)
        )
        self.sent: list[tuple[float, SessionProtocol, bytes]] = []
        self.on_its_way: deque[tuple[float, SessionProtocol, bytes]] = deque()
        self.is_cut = False
        self.deaths: dict[SessionProtocol, float] = {}

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (now := self._next_moment()) <= end:
            self.now = now
            while self.on_its_way and self.on_its_way[0][0] <= now:
                _, receiver, data = self.on_its_way.popleft()
                receiver.receive(decode_packet(data), len(data), now)
            for one in self._alive():
                try:
                    one.tick(now)
                except ProtocolError as fault:
                    assert fault.reason is Reason.PING_TIMEOUT
                    self.deaths[one] = now
                while one not in self.deaths and (packet := one.next_packet(now)) is not None:
                    self._send(one, encode_packet(*packet))
        self.now = end

    def _alive(self) -> list[SessionProtocol]:
        return [one for one in (self.server, self.agent) if one not in self.deaths]

    def _next_moment(self) -> float:
        moments = [max(one.deadline(), self.now) for one in self._alive()]
        return min([*moments, *(arrival for arrival, _, _ in self.on_its_way)], default=math.inf)

    def _send(self, sender: SessionProtocol, data: bytes) -> None:
        self.sent.append((self.now, sender, data))
        receiver = self.server if sender is self.agent else self.agent
        if not self.is_cut:
            self.on_its_way.append((self.now + ROUND_TRIP_SECONDS / 2, receiver, data))

    def bytes_on_the_wire(self, headers: int) -> int:
        """Return the bytes of IP packets so far: of each ping, its pong, and TCP's ack of the pong."""
        acks = sum(sender is self.server for _, sender, _ in self.sent)
        around = TLS_RECORD + MESSAGE + headers
        return sum(around + len(data) for _, _, data in self.sent) + acks * (headers + WINDOW_UPDATES)


@pytest.mark.parametrize(
    ("metered", "budget", "budget_ipv6"), [(False, 66_000, 80_000), (True, 5_000, 6_000)]
)
def test_an_idle_hour_is_pings_and_pongs_within_its_budget(
    metered: bool, budget: int, budget_ipv6: int
) -> None:
    link = IdleLink(metered=metered)
    link.run(1)
    link.sent.clear()
    link.run(3600)
    pings = 3600 // link.profile.idle_ping_seconds
    assert [sender is link.agent for _, sender, _ in link.sent] == [True, False] * int(pings)
    kinds = {type(frame) for _, _, data in link.sent for frame in packet_of(data).frames}
    assert kinds == {Ping, Pong}
    assert all(len(packet_of(data).frames) == 1 for _, _, data in link.sent)
    assert link.bytes_on_the_wire(IPV4_TCP) <= budget
    assert link.bytes_on_the_wire(IPV6_TCP) <= budget_ipv6


@pytest.mark.parametrize(("metered", "seconds"), [(False, 22), (True, 222)])
@pytest.mark.parametrize("phase", [0.1, 0.5, 0.99])
def test_both_ends_of_an_idle_link_know_in_time_that_the_other_is_dead(
    metered: bool, seconds: float, phase: float
) -> None:
    link = IdleLink(metered=metered)
    link.run(600 + phase * link.profile.idle_ping_seconds)
    link.is_cut, cut_at = True, link.now
    link.run(2 * seconds)
    assert link.deaths.keys() == {link.server, link.agent}
    assert max(link.deaths.values()) - cut_at <= seconds
    apart = max(link.deaths.values()) - min(link.deaths.values())
    assert apart <= 2 * link.profile.active_ping_seconds, "both ends know it at about the same time"


def packet_of(data: bytes) -> Packet:
    packet = decode_packet(data)
    assert isinstance(packet, Packet)
    return packet


def test_pings_keep_a_nat_awake_and_acks_are_never_late() -> None:
    for profile in PROFILES.values():
        assert profile.idle_ping_seconds + 4 * profile.active_ping_seconds <= SHORTEST_NAT_SECONDS
        assert profile.ack_delay_seconds <= LATE_SECONDS / 4
        assert profile.active_ping_seconds < profile.idle_ping_seconds


def test_a_session_without_a_profile_uses_the_default() -> None:
    default, limits = profile_of(metered=False), Limits()
    assert default.idle_ping_seconds == limits.ping_interval_seconds


def test_metered_costs_less_in_everything() -> None:
    default, metered = profile_of(metered=False), profile_of(metered=True)
    assert metered.idle_ping_seconds > default.idle_ping_seconds
    assert metered.active_ping_seconds > default.active_ping_seconds
    assert metered.active_seconds < default.active_seconds
    assert metered.ack_delay_seconds > default.ack_delay_seconds
    assert metered.attempt_seconds > default.attempt_seconds
