"""Counts before authentication: in total, per IPv4 address and per IPv6 /64."""

from __future__ import annotations

import pytest

from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import source_of
from tunnel_server.listeners.admission import MAX_KNOWN, Admission, Ticket


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "local"),
    ],
)
def test_what_counts_as_one_source(address: str, source: str) -> None:
    assert source_of(address) == source


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def refusal(admission: Admission, address: str) -> Reason:
    with pytest.raises(Refused) as caught:
        admission.admit(address)
    return caught.value.reason


def admit_many(admission: Admission, address: str, number: int) -> list[Ticket]:
    return [admission.admit(address) for _ in range(number)]


def test_the_total_is_bounded() -> None:
    admission = Admission(2, 9, clock=Clock())
    first, _ = admission.admit("192.0.2.1"), admission.admit("192.0.2.2")
    assert refusal(admission, "192.0.2.3") is Reason.TOO_MANY_CONNECTIONS
    first.release()
    first.release()
    admission.admit("192.0.2.3")
    assert refusal(admission, "192.0.2.4") is Reason.TOO_MANY_CONNECTIONS


def test_a_source_waits_until_its_other_connections_are_authenticated_or_closed() -> None:
    admission = Admission(99, 2, 4, clock=Clock())
    first, second, third = admit_many(admission, "2001:db8::1", 3)
    turns: list[str] = []
    third.on_turn = lambda: turns.append("third")
    assert (first.waits, second.waits, third.waits) == (False, False, True)
    assert third.refusal().reason is Reason.TOO_MANY_FROM_SOURCE
    assert "2 unauthenticated connections from 2001:db8::/64" in third.refusal().detail
    assert not admission.admit("2001:db8:0:1::1").waits, "another source does not wait"
    second.release()
    assert turns == ["third"] and not third.waits
    assert admission.open_connections == 3


def test_waiting_connections_are_bounded_for_each_source() -> None:
    admission = Admission(99, 1, 50, clock=Clock())
    tickets = admit_many(admission, "192.0.2.1", 5)
    assert [ticket.waits for ticket in tickets] == [False, True, True, True, True]
    assert refusal(admission, "192.0.2.1") is Reason.TOO_MANY_FROM_SOURCE
    tickets[2].release()  # the waiting connection gave up
    fresh = admission.admit("192.0.2.1")
    tickets[0].release()
    assert [ticket.waits for ticket in tickets[3:]] + [fresh.waits] == [True, True, True]
    assert not tickets[1].waits, "the oldest comes first"
    for ticket in [*tickets, fresh]:
        ticket.release()
    assert admission.open_connections == 0
    assert not admission.admit("192.0.2.1").waits


def test_waiting_connections_are_bounded_in_total_and_sources_take_turns() -> None:
    admission = Admission(99, 2, 2, clock=Clock())
    first, _ = admit_many(admission, "192.0.2.1", 2)
    second = admission.admit("192.0.2.2")
    assert second.waits and second.refusal().reason is Reason.TOO_MANY_CONNECTIONS
    third = admission.admit("192.0.2.3")
    assert refusal(admission, "192.0.2.4") is Reason.TOO_MANY_CONNECTIONS
    first.release()
    assert (second.waits, third.waits) == (False, True)
    second.release()
    assert not third.waits


def test_a_source_with_an_authenticated_caller_gets_more_for_a_while() -> None:
    clock = Clock()
    admission = Admission(9999, 2, 400, clock=clock)
    strangers = admit_many(admission, "192.0.2.1", 10)
    assert sum(not ticket.waits for ticket in strangers) == 2
    strangers[0].authenticated()  # and at once the source's waiting connections have room
    assert not any(ticket.waits for ticket in strangers)
    more = admit_many(admission, "192.0.2.1", 120)
    assert sum(not ticket.waits for ticket in [*strangers[1:], *more]) == 100, "a quarter of the listener's"
    assert sum(not ticket.waits for ticket in admit_many(admission, "192.0.2.2", 5)) == 2
    for ticket in [*strangers, *more]:
        ticket.release()
    clock.seconds += 601
    assert sum(not ticket.waits for ticket in admit_many(admission, "192.0.2.1", 5)) == 2


def test_a_refused_connection_frees_the_place_of_the_source_and_stays_in_the_total() -> None:
    admission = Admission(2, 1, 4, clock=Clock())
    first, second = admit_many(admission, "192.0.2.1", 2)
    first.refused()
    assert not second.waits
    assert refusal(admission, "192.0.2.2") is Reason.TOO_MANY_CONNECTIONS
    first.release()
    assert admission.open_connections == 1


def test_a_connection_without_authentication_makes_no_source_known() -> None:
    admission = Admission(99, 2, 400, clock=Clock())
    admission.admit("192.0.2.1").release()
    assert sum(not ticket.waits for ticket in admit_many(admission, "192.0.2.1", 5)) == 2


def test_an_allowance_that_was_set_higher_stays() -> None:
    admission = Admission(999, 50, 100, clock=Clock())
    admission.admit("192.0.2.1").authenticated()
    assert sum(not ticket.waits for ticket in admit_many(admission, "192.0.2.1", 60)) == 50


def test_known_sources_are_bounded() -> None:
    admission = Admission(9999, 1, 400, clock=Clock())
    for number in range(MAX_KNOWN + 1):
        ticket = admission.admit(f"10.0.{number // 256}.{number % 256}")
        ticket.authenticated()
        ticket.release()
    assert admit_many(admission, "10.0.0.0", 2)[1].waits, "the oldest was forgotten"
    assert not admit_many(admission, "10.0.0.1", 2)[1].waits


def test_unix_sockets_are_bound_by_the_total_only() -> None:
    admission = Admission(5, 1, clock=Clock())
    for _ in range(5):
        assert not admission.admit("").waits
    assert refusal(admission, "") is Reason.TOO_MANY_CONNECTIONS


def evicted(tickets: list[Ticket]) -> list[int]:
    """Return the positions of the evicted ones in the list."""
    return [number for number, ticket in enumerate(tickets) if ticket.evicted]


def test_idle_connections_of_many_sources_make_room_for_another_source() -> None:
    clock = Clock()
    admission = Admission(9999, 32, 1024, clock=clock)
    held = [ticket for n in range(32) for ticket in admit_many(admission, f"192.0.2.{n}", 32)]
    clock.seconds += 0.1
    for ticket in [*held[:5], *held[6:]]:
        ticket.progressed()
    closed: list[int] = []
    held[5].on_evicted = lambda: closed.append(5)
    user = admission.admit("198.51.100.1")
    admission.make_room()
    assert user.waits, "none is idle for long enough"
    clock.seconds += 2
    admission.make_room()
    assert not user.waits and not admission.has_waiting
    assert evicted(held) == [5] == closed, "the longest idle of a source that holds the most"
    assert held[5].evicted is not None and held[5].evicted.reason is Reason.TOO_MANY_CONNECTIONS
    held[5].release()
    assert admission.open_connections == 1024
    again = admission.admit("198.51.100.1")
    assert again.waits, "the place that was given away is not free once more"


def test_the_waiting_line_has_room_for_a_source_of_which_none_waits() -> None:
    clock = Clock()
    admission = Admission(9999, 32, 1024, clock=clock)
    for n in range(32):
        admit_many(admission, f"192.0.2.{n}", 32)
    waiting = [ticket for n in range(8) for ticket in admit_many(admission, f"192.0.2.{n}", 128)]
    user = admission.admit("198.51.100.1")
    assert evicted(waiting) == [127] and not waiting[127].waits
    assert refusal(admission, "192.0.2.0") is Reason.TOO_MANY_CONNECTIONS, "of it 127 wait, which is enough"
    clock.seconds += 2
    admission.make_room()
    assert not user.waits
    opened = admission.open_connections
    waiting[127].release()
    assert admission.open_connections == opened - 1


def test_a_source_that_never_idles_makes_room_after_a_moment() -> None:
    clock = Clock()
    admission = Admission(9999, 32, 64, clock=clock)
    busy = [ticket for n in range(2) for ticket in admit_many(admission, f"192.0.2.{n}", 32)]
    user = admission.admit("198.51.100.1")
    for _ in range(9):
        clock.seconds += 0.1
        for ticket in busy[1:] + busy[:1]:
            ticket.progressed()
            clock.seconds += 1e-6
        admission.make_room()
        assert user.waits
    clock.seconds += 0.11
    admission.make_room()
    assert not user.waits and evicted(busy) == [1], "the one that showed nothing for longest"


def test_sources_that_hold_one_each_keep_it_while_they_show_something() -> None:
    """A fleet connects at once: each connection needs a little time, and none takes another's place."""
    clock = Clock()
    admission = Admission(9999, 32, 4, clock=clock)
    held = []
    for n in range(4):
        held.append(admission.admit(f"192.0.2.{n}"))
        clock.seconds += 0.01
    user = admission.admit("198.51.100.1")
    clock.seconds += 1.5
    admission.make_room()
    assert user.waits and not evicted(held)
    clock.seconds += 0.5
    admission.make_room()
    assert not user.waits and evicted(held) == [0]


def test_colleagues_get_the_places_of_stalled_connections_of_their_address() -> None:
    clock = Clock()
    admission = Admission(9999, 2, 400, clock=clock)
    stalled = admit_many(admission, "192.0.2.1", 2)
    clock.seconds += 1
    colleague = admission.admit("192.0.2.1")
    admission.make_room()
    assert colleague.waits
    clock.seconds += 1
    admission.make_room()
    assert not colleague.waits and evicted(stalled) == [0]
    assert stalled[0].evicted is not None and stalled[0].evicted.reason is Reason.TOO_MANY_FROM_SOURCE


def test_a_known_source_is_measured_by_its_own_allowance() -> None:
    """Colleagues behind one address hold more than any unknown source may, and less than their allowance."""
    clock = Clock()
    admission = Admission(9999, 2, 40, clock=clock)
    first = admission.admit("192.0.2.1")
    first.authenticated()
    colleagues = admit_many(admission, "192.0.2.1", 8)
    strangers = [ticket for n in range(16) for ticket in admit_many(admission, f"198.51.100.{n}", 2)]
    assert admission.admit("203.0.113.1").waits
    clock.seconds += 5
    admission.make_room()
    assert not evicted(colleagues) and len(evicted(strangers)) == 1


def test_connections_in_work_or_authenticated_or_refused_are_not_closed() -> None:
    clock = Clock()
    admission = Admission(9999, 4, 4, clock=clock)
    worked_on, proven, refused, idle = admit_many(admission, "192.0.2.1", 4)
    proven.authenticated()
    refused.refused()
    admit_many(admission, "192.0.2.1", 2)
    user = admission.admit("198.51.100.1")
    clock.seconds += 5
    with worked_on.at_work():
        admission.make_room()
        assert not user.waits and idle.evicted
        assert not any(ticket.evicted for ticket in (worked_on, proven, refused))
    assert admission.admit("198.51.100.2").waits
    admission.make_room()
    assert worked_on.evicted is None, "its work is done just now"


def test_making_room_for_thousands_of_sources_is_bounded() -> None:
    clock = Clock()
    admission = Admission(9999, 32, 1024, clock=clock)
    held = [admission.admit(f"10.1.{n // 256}.{n % 256}") for n in range(1024)]
    waiting = [admission.admit(f"10.2.{n // 256}.{n % 256}") for n in range(1024)]
    clock.seconds += 3
    admission.make_room()
    assert len(evicted(held)) == sum(not ticket.waits for ticket in waiting) == 32
    for ticket in [*held, *waiting]:
        ticket.release()
    assert admission.open_connections == 0 and not admission.has_waiting
