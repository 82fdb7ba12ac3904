"""When a receiver acknowledges, and the arrival stamp in its acknowledgement."""

from __future__ import annotations

import math

from tunnel_core.congestion.acks import STAMP_MODULUS, AckScheduler
from tunnel_core.limits import Limits

LIMITS = Limits()
DELAY = 0.025


def test_without_received_packets_no_ack_is_owed() -> None:
    scheduler = AckScheduler(LIMITS, DELAY)
    assert scheduler.due == math.inf
    assert scheduler.sent() == 0


def test_packets_without_a_request_are_acknowledged_after_a_while() -> None:
    scheduler = AckScheduler(LIMITS, DELAY)
    scheduler.received(64, 1.0, at_once=False)
    scheduler.received(64, 1.01, at_once=False)
    assert scheduler.due == 1.0 + DELAY


def test_a_sender_that_asks_is_answered_at_once() -> None:
    scheduler = AckScheduler(LIMITS, DELAY)
    scheduler.received(64, 1.0, at_once=False)
    scheduler.received(64, 1.01, at_once=True)
    scheduler.received(64, 1.02, at_once=False)
    assert scheduler.due == 1.01


def test_many_bytes_are_acknowledged_without_a_request() -> None:
    scheduler = AckScheduler(LIMITS, DELAY)
    scheduler.received(LIMITS.ack_every_bytes - 1, 1.0, at_once=False)
    assert scheduler.due > 1.0
    scheduler.received(1, 1.001, at_once=False)
    assert scheduler.due == 1.001


def test_every_packet_acknowledges_and_carries_the_arrival_of_the_newest() -> None:
    scheduler = AckScheduler(LIMITS, DELAY)
    scheduler.received(64, 1.0, at_once=False)
    scheduler.received(64, 1.5, at_once=False)
    assert scheduler.sent() == 1_500_000
    assert scheduler.due == math.inf
    assert scheduler.sent() == 0


def test_the_stamp_wraps_and_is_never_the_empty_one() -> None:
    scheduler = AckScheduler(LIMITS, DELAY)
    scheduler.received(64, STAMP_MODULUS / 1e6, at_once=False)
    assert scheduler.sent() == 1
    scheduler.received(64, STAMP_MODULUS / 1e6 + 2.0, at_once=False)
    assert scheduler.sent() == 2_000_000
