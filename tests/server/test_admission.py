"""Counts before authentication: in total, per IPv4 address and per IPv6 /64."""

from __future__ import annotations

import pytest

from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import source_of
from tunnel_server.admission import MAX_KNOWN, Admission, Ticket


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


def test_one_source_waits_until_others_of_it_proved_themselves_or_left() -> None:
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


def test_what_waits_is_bounded_for_each_source() -> None:
    admission = Admission(99, 1, 50, clock=Clock())
    tickets = admit_many(admission, "192.0.2.1", 5)
    assert [ticket.waits for ticket in tickets] == [False, True, True, True, True]
    assert refusal(admission, "192.0.2.1") is Reason.TOO_MANY_FROM_SOURCE
    tickets[2].release()  # it gave up
    fresh = admission.admit("192.0.2.1")
    tickets[0].release()
    assert [ticket.waits for ticket in tickets[3:]] + [fresh.waits] == [True, True, True]
    assert not tickets[1].waits, "the oldest comes first"
    for ticket in [*tickets, fresh]:
        ticket.release()
    assert admission.open_connections == 0
    assert not admission.admit("192.0.2.1").waits


def test_what_waits_is_bounded_in_total_and_sources_take_turns() -> None:
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


def test_a_source_where_somebody_proved_himself_gets_more_for_a_while() -> None:
    clock = Clock()
    admission = Admission(9999, 2, 400, clock=clock)
    strangers = admit_many(admission, "192.0.2.1", 10)
    assert sum(not ticket.waits for ticket in strangers) == 2
    strangers[0].authenticated()  # and at once those that wait here have room
    assert not any(ticket.waits for ticket in strangers)
    more = admit_many(admission, "192.0.2.1", 120)
    assert sum(not ticket.waits for ticket in [*strangers[1:], *more]) == 100, "a quarter of the listener's"
    assert sum(not ticket.waits for ticket in admit_many(admission, "192.0.2.2", 5)) == 2
    for ticket in [*strangers, *more]:
        ticket.release()
    clock.seconds += 601
    assert sum(not ticket.waits for ticket in admit_many(admission, "192.0.2.1", 5)) == 2


def test_who_was_refused_frees_the_place_of_the_source_and_stays_in_the_total() -> None:
    admission = Admission(2, 1, 4, clock=Clock())
    first, second = admit_many(admission, "192.0.2.1", 2)
    first.refused()
    assert not second.waits
    assert refusal(admission, "192.0.2.2") is Reason.TOO_MANY_CONNECTIONS
    first.release()
    assert admission.open_connections == 1


def test_who_leaves_without_a_proof_makes_no_source_known() -> None:
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
