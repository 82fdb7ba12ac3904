"""When a receiver acknowledges, and the arrival stamp in its acknowledgement."""

from __future__ import annotations

import math

from tunnel_core.congestion.acks import STAMP_MODULUS, AckScheduler
from tunnel_core.limits import Limits

LIMITS = Limits()
DELAY = 0.025


def test_without_received_packets_no_ack_is_owed() -> None:
    confirming = AckScheduler(LIMITS, DELAY)
    assert confirming.due == math.inf
    assert confirming.sent() == 0


def test_packets_without_a_request_are_acknowledged_after_a_while() -> None:
    confirming = AckScheduler(LIMITS, DELAY)
    confirming.received(64, 1.0, at_once=False)
    confirming.received(64, 1.01, at_once=False)
    assert confirming.due == 1.0 + DELAY


def test_a_sender_that_asks_is_answered_at_once() -> None:
    confirming = AckScheduler(LIMITS, DELAY)
    confirming.received(64, 1.0, at_once=False)
    confirming.received(64, 1.01, at_once=True)
    confirming.received(64, 1.02, at_once=False)
    assert confirming.due == 1.01


def test_many_bytes_are_acknowledged_without_a_request() -> None:
    confirming = AckScheduler(LIMITS, DELAY)
    confirming.received(LIMITS.ack_every_bytes - 1, 1.0, at_once=False)
    assert confirming.due > 1.0
    confirming.received(1, 1.001, at_once=False)
    assert confirming.due == 1.001


def test_every_packet_acknowledges_and_carries_the_arrival_of_the_newest() -> None:
    confirming = AckScheduler(LIMITS, DELAY)
    confirming.received(64, 1.0, at_once=False)
    confirming.received(64, 1.5, at_once=False)
    assert confirming.sent() == 1_500_000
    assert confirming.due == math.inf
    assert confirming.sent() == 0


def test_the_stamp_wraps_and_is_never_the_empty_one() -> None:
    confirming = AckScheduler(LIMITS, DELAY)
    confirming.received(64, STAMP_MODULUS / 1e6, at_once=False)
    assert confirming.sent() == 1
    confirming.received(64, STAMP_MODULUS / 1e6 + 2.0, at_once=False)
    assert confirming.sent() == 2_000_000
