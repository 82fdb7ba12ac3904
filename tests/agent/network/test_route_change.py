"""What counts as a change of the way to the server, and how often it is told."""

from __future__ import annotations

import math

from tunnel_agent.network.netlink import KernelRoute
from tunnel_agent.network.route_change import MAX_ADDRESSES, RouteChange

WIFI, MODEM = KernelRoute(2, "192.168.1.10", "192.168.1.1"), KernelRoute(3, "10.64.0.7", "10.64.0.1")
A, B = "192.0.2.1", "2001:db8::1"


def watching(**routes: KernelRoute | None) -> RouteChange:
    """Watches A by WIFI, with whatever else is said."""
    change = RouteChange(5.0)
    change.watch([A])
    change.answered({A: WIFI})
    return change


def test_the_first_answer_is_no_change() -> None:
    assert watching().due_at(0.0) == math.inf


def test_the_same_answer_is_no_change() -> None:
    change = watching()
    change.answered({A: WIFI})
    assert not change.take_change(0.0)


def test_another_interface_source_or_gateway_is_a_change() -> None:
    for other in (MODEM, WIFI._replace(source="192.168.1.11"), WIFI._replace(gateway="192.168.1.2")):
        change = watching()
        change.answered({A: other})
        assert change.take_change(0.0)
        assert not change.take_change(9.0)


def test_a_way_that_went_is_told_when_it_is_back_even_the_old_one() -> None:
    change = watching()
    change.answered({A: None})
    assert not change.take_change(0.0)
    change.answered({A: WIFI})
    assert change.take_change(0.0)


def test_a_way_that_was_never_there_is_told_when_it_comes() -> None:
    change = RouteChange(5.0)
    change.watch([A])
    change.answered({A: None})
    change.answered({A: WIFI})
    assert change.take_change(0.0)


def test_when_one_family_goes_the_other_is_worth_an_attempt() -> None:
    change = RouteChange(5.0)
    change.watch([A, B])
    change.answered({A: WIFI, B: WIFI})
    change.answered({A: WIFI, B: None})
    assert change.take_change(0.0)


def test_changes_in_a_row_are_told_once_and_then_once_at_the_end() -> None:
    change = watching()
    change.answered({A: MODEM})
    assert change.take_change(100.0)
    change.answered({A: WIFI})
    change.answered({A: MODEM})
    assert not change.take_change(101.0)
    assert change.due_at(101.0) == 105.0
    assert change.take_change(105.0)
    assert change.due_at(105.0) == math.inf


def test_no_answer_changes_nothing() -> None:
    change = watching()
    change.answered({})
    assert not change.take_change(0.0)
    assert change.addresses == (A,)


def test_new_addresses_have_no_history_and_old_ones_keep_theirs() -> None:
    change = watching()
    change.watch([B, A])
    change.answered({B: MODEM, A: WIFI})
    assert not change.take_change(0.0)
    change.watch([A])
    change.answered({A: MODEM})
    assert change.take_change(0.0)


def test_addresses_are_bounded_and_each_is_watched_once() -> None:
    change = RouteChange(5.0)
    change.watch([A, A, *(f"198.51.100.{i}" for i in range(50))])
    assert len(change.addresses) == MAX_ADDRESSES
    assert change.addresses[0] == A
