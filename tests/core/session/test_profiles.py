"""The profiles keep their budgets of bytes, by the measured size of a ping."""

from __future__ import annotations

import pytest

from tunnel_core.limits import Limits
from tunnel_core.session.profiles import PROFILES, ProfileName, profile_of

PING_BYTES_IPV6 = 410
LATE_SECONDS = 1.0
SHORTEST_NAT_SECONDS = 240


@pytest.mark.parametrize(("name", "budget"), [("default", 100_000), ("metered", 15_000)])
def test_an_idle_hour_stays_within_its_budget(name: str, budget: int) -> None:
    profile = PROFILES[ProfileName(name)]
    assert 3600 / profile.idle_ping_seconds * PING_BYTES_IPV6 <= budget


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
