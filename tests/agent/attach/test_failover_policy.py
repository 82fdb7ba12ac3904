"""When an agent tries another carrier, and when its session moves to it: each rule alone, without a clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_agent.attach.failover_policy import Abandon, CarrierStatus, FailoverPolicy, Start

WELL = CarrierStatus(lost=False, silent=False, last_received_at=0.0, answer_seconds=1.0)
QUIET = CarrierStatus(lost=False, silent=True, last_received_at=0.0, answer_seconds=1.0)
LOST = CarrierStatus(lost=True, silent=False, last_received_at=-math.inf, answer_seconds=1.0)


def attempts() -> FailoverPolicy:
    return FailoverPolicy(response_timeout_seconds=10, max_wait_seconds=30)


def starts(machine: FailoverPolicy, carried: CarrierStatus, until: float, chance: float = 0.5) -> list[float]:
    """Return the start times of attempts that all hang until they are abandoned."""
    times, now = [], 100.0
    while now < until:
        actions = machine.poll(now, carried, chance)
        if any(isinstance(action, Start) for action in actions):
            times.append(now)
        now = max(now + 0.01, min(machine.due, until))
    return times


def test_no_attempt_starts_while_the_carrier_is_healthy() -> None:
    machine = attempts()
    assert machine.poll(100, WELL, 0.5) == [] and machine.due == math.inf


def test_a_lost_carrier_is_replaced_at_once_and_then_every_one_to_two_seconds() -> None:
    for chance, stride in ((0.0, 1.0), (1.0, 2.0)):
        machine = attempts()
        assert machine.poll(100, LOST, chance) == [Start(1, 10)]
        assert machine.due == 100 + stride


def test_at_most_two_are_under_way_and_a_third_replaces_the_younger() -> None:
    machine = attempts()
    assert machine.poll(100, QUIET, 0) == [Start(1, 10)]
    assert machine.poll(101, QUIET, 0) == [Start(2, 10)]
    assert machine.poll(102, QUIET, 0) == [Abandon(2), Start(3, 10)]


def test_a_connected_attempt_is_not_replaced() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    machine.poll(101, QUIET, 0)
    assert not machine.connected(2, QUIET)
    assert machine.poll(102, QUIET, 0) == [Abandon(1), Start(3, 10)]
    assert not machine.connected(3, QUIET)
    assert machine.poll(103, QUIET, 0) == [] and machine.due > 103
    machine.failed(2)
    assert machine.poll(104, QUIET, 0) == [Start(4, 10)]


def test_without_a_carrier_one_attempt_at_a_time_is_bound() -> None:
    machine = attempts()
    machine.poll(100, LOST, 0)
    machine.poll(101, LOST, 0)
    assert machine.connected(1, LOST)
    assert not machine.connected(2, LOST), "the server may have moved to the first"
    machine.failed(1)
    machine.poll(102, LOST, 0)
    assert machine.connected(3, LOST)
    assert machine.welcomed(2, LOST), "who is welcomed is used, bound or not"
    assert machine.moved(102.5) == [Abandon(3)]


def test_beside_a_carrier_that_may_live_none_is_bound() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    assert not machine.connected(1, QUIET)
    assert machine.welcomed(1, QUIET)


def test_a_bound_attempt_is_used_whatever_was_received() -> None:
    machine = attempts()
    machine.poll(100, LOST, 0)
    assert machine.connected(1, LOST)
    assert machine.welcomed(1, LOST)
    assert not machine.connected(1, LOST), "it is no longer under way"


def test_attempts_at_a_far_server_live_longer() -> None:
    far = CarrierStatus(lost=True, silent=False, last_received_at=-math.inf, answer_seconds=4 * 0.7)
    gap = 4 * 0.7
    assert starts(attempts(), far, 103, chance=0) == pytest.approx([100, 100 + gap], abs=0.02)


def test_a_pong_that_sat_out_an_outage_does_not_keep_the_agent_from_trying() -> None:
    lost = CarrierStatus(lost=True, silent=False, last_received_at=-math.inf, answer_seconds=240)
    assert starts(attempts(), lost, 130, chance=1) == [100, 110, 120]


def test_another_route_gives_up_what_tries_the_old_one() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    machine.poll(101, QUIET, 0)
    machine.connected(1, QUIET)
    machine.route_changed()
    assert machine.poll(101.5, QUIET, 0) == [Abandon(2), Start(3, 10)]


def test_old_trouble_is_tried_one_at_a_time_with_growing_waits() -> None:
    machine = attempts()
    number, now, gaps, last = 0, 100.0, [], 100.0
    while now < 1000:
        for action in machine.poll(now, LOST, 1.0):
            if isinstance(action, Start):
                gaps.append(now - last)
                last, number = now, action.number
        machine.failed(number)
        now = machine.due
    assert gaps[-1] == 30
    assert sorted(gaps[16:]) == gaps[16:]


def test_an_attempt_is_used_only_if_the_old_carrier_received_nothing_since() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    assert not machine.welcomed(1, CarrierStatus(False, True, 100.2, 1.0))
    machine.poll(101, QUIET, 0)
    assert machine.welcomed(2, CarrierStatus(False, True, 99.0, 1.0))


def backlogged(late_since: float) -> CarrierStatus:
    """Return the status of a carrier that receives all the time, without an answer to what it sent then."""
    return CarrierStatus(False, False, last_received_at=1e9, answer_seconds=1.0, late_since=late_since)


def test_an_attempt_that_was_quicker_than_an_answer_of_the_old_carrier_is_used() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    assert machine.poll(100.5, backlogged(99), 0) == [], "it may tell"
    assert machine.due == math.inf, "nothing more is tried beside a carrier that lives"
    assert machine.welcomed(1, backlogged(99))


def test_beside_a_carrier_that_brings_something_one_is_tried_in_ten_seconds() -> None:
    machine, started, now = attempts(), [], 100.0
    while now < 130:
        for action in machine.poll(now, backlogged(99), 0):
            if isinstance(action, Start):
                started.append(now)
                machine.failed(action.number)
        assert machine.due == math.inf, "what is late tells when it is looked at again"
        now += 0.5
    assert started == [100, 110, 120]


def test_a_carrier_that_is_late_only_since_the_attempt_began_is_kept() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    assert not machine.welcomed(1, backlogged(100.1))


def test_a_backlogged_carrier_is_left_once_in_ten_seconds() -> None:
    machine, now, moves = attempts(), 100.0, 0
    while now < 130:
        for action in machine.poll(now, QUIET, 0):
            if isinstance(action, Start) and machine.welcomed(action.number, backlogged(now - 1)):
                moves += 1
                machine.moved(now)
        now += 0.5
    assert moves == 3


def test_trouble_that_is_over_abandons_what_a_late_answer_kept() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    machine.poll(100.5, backlogged(99), 0)
    assert machine.poll(101, WELL, 0) == [Abandon(1)]


def test_an_attempt_that_was_abandoned_is_not_used() -> None:
    machine = attempts()
    machine.poll(100, QUIET, 0)
    assert machine.poll(100.5, WELL, 0) == [Abandon(1)]
    assert not machine.welcomed(1, LOST)


def test_all_others_are_abandoned_when_one_is_used() -> None:
    machine = attempts()
    machine.poll(100, LOST, 0)
    machine.poll(101, LOST, 0)
    assert machine.welcomed(2, LOST)
    assert machine.moved(101.5) == [Abandon(1)]


def test_a_link_that_is_lost_again_and_again_makes_no_tight_loop() -> None:
    machine = attempts()
    now, started = 100.0, 0
    while now < 110:
        for action in machine.poll(now, LOST, 0):
            if isinstance(action, Start):
                started += 1
                assert machine.welcomed(action.number, LOST)
                machine.moved(now)
                machine.poll(now, WELL, 0)
        now += 0.01
    assert started <= 11


def test_a_session_that_moved_is_in_young_trouble_when_it_is_lost_again() -> None:
    machine, now = attempts(), 100.0
    for _ in range(40):  # a link that is cut every three seconds
        started = [action for action in machine.poll(now, LOST, 1.0) if isinstance(action, Start)]
        assert started, "at once, and not in a while"
        assert machine.welcomed(started[0].number, LOST)
        machine.moved(now)
        machine.poll(now, WELL, 0)
        now += 3


def test_a_changed_route_starts_one_attempt_in_five_seconds() -> None:
    machine = attempts()
    started = 0
    for tick in range(1000):
        machine.route_changed()
        started += len([a for a in machine.poll(100 + tick / 100, WELL, 0) if isinstance(a, Start)])
    assert started == 2


def test_hanging_attempts_in_the_first_two_minutes() -> None:
    times = starts(attempts(), LOST, 120)
    assert 12 <= len(times) <= 15


def test_a_path_that_returned_starts_an_attempt_at_once() -> None:
    machine = attempts()
    machine.poll(100, LOST, 0)
    machine.poll(101, LOST, 0)
    machine.path_returned(101.3)
    assert machine.due == 101.3
    assert machine.poll(101.35, LOST, 0) == [Abandon(2), Start(3, 10)], "the older one may be on a slow path"
    assert machine.due == 102.35


def test_a_path_that_returned_needs_no_attempt_beside_one_that_uses_it() -> None:
    machine = attempts()
    machine.poll(100, LOST, 0)
    machine.path_returned(99.9)
    assert machine.poll(100.1, LOST, 0) == [], "it began after the path was back"
    assert machine.connected(1, LOST)
    machine.path_returned(100.5)
    assert machine.poll(100.6, LOST, 0) == [], "its answer is under way"


def test_a_path_is_probed_in_young_trouble_only() -> None:
    machine = attempts()
    assert not machine.may_probe(100, LOST), "nothing was tried yet"
    machine.poll(100, QUIET, 0)
    assert machine.may_probe(100, QUIET)
    assert not machine.may_probe(100.5, backlogged(99)), "the carrier lives"
    machine.connected(1, QUIET)
    assert not machine.may_probe(101, QUIET), "the path works"
    machine.failed(1)
    assert machine.may_probe(129, LOST)
    assert not machine.may_probe(131, LOST), "a fleet must not come back in one instant"
    machine.poll(131, WELL, 0)
    assert not machine.may_probe(131, WELL)


def test_a_refresh_moves_a_session_that_is_well() -> None:
    machine = attempts()
    machine.refresh()
    assert machine.poll(100, WELL, 0) == [Start(1, 10)]
    assert machine.poll(100.1, WELL, 0) == []
    assert machine.welcomed(1, received(101))
    machine.moved(101)
    assert machine.poll(101, WELL, 0) == [] and machine.due == math.inf


def received(at: float) -> CarrierStatus:
    return CarrierStatus(lost=False, silent=False, last_received_at=at, answer_seconds=0.2)


def test_a_refresh_that_fails_is_tried_again_ever_rarer() -> None:
    machine, begun, now = attempts(), [], 100.0
    machine.refresh()
    while now < 400:
        for action in machine.poll(now, WELL, 0):
            begun.append(now)
            machine.failed(action.number)
        now = machine.due
    assert begun == [100, 102, 106, 114, 130, 162, 222, 282, 342]


def test_an_attempt_that_began_before_is_no_refresh_and_one_for_another_reason_is() -> None:
    machine = attempts()
    assert machine.poll(100, QUIET, 0) == [Start(1, 10)]
    machine.refresh()
    assert not machine.welcomed(1, received(101))
    assert machine.poll(101, LOST, 0) == [Start(2, 10)]
    assert machine.welcomed(2, LOST)
    machine.moved(102)
    assert machine.poll(102, WELL, 0) == [] and machine.due == math.inf


STANDS = st.sampled_from([WELL, QUIET, LOST, backlogged(99)])


@given(st.lists(st.tuples(STANDS, st.floats(0, 40), st.floats(0, 1), st.booleans()), max_size=60))
def test_polling_at_the_due_time_never_spins(
    steps: list[tuple[CarrierStatus, float, float, bool]],
) -> None:
    machine, now = attempts(), 100.0
    under_way: set[int] = set()
    for carried, waits, chance, one_fails in steps:
        if chance > 0.8:
            machine.refresh()
        for _ in range(3):
            for action in machine.poll(now, carried, chance):
                (under_way.add if isinstance(action, Start) else under_way.discard)(action.number)
        assert machine.due > now
        assert len(under_way) <= 2
        now += waits
        if one_fails and under_way:
            machine.failed(under_way.pop())
        elif under_way:
            machine.connected(max(under_way), carried)


def test_on_a_metered_link_attempts_are_rarer() -> None:
    machine = FailoverPolicy(response_timeout_seconds=10, max_wait_seconds=30, attempt_seconds=4.5)
    assert machine.poll(100, LOST, 0.5) == [Start(1, 10)]
    assert machine.due == 104.5
