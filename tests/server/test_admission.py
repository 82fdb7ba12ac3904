"""Counts before authentication: in total, per IPv4 address and per IPv6 /64."""

from __future__ import annotations

import pytest

from tunnel_core.reasons import Reason, Refused
from tunnel_server.admission import Admission, source_of


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


def refusal(admission: Admission, address: str) -> Reason:
    with pytest.raises(Refused) as caught:
        admission.admit(address)
    return caught.value.reason


def test_the_total_is_bounded() -> None:
    admission = Admission(2, 9)
    first, _ = admission.admit("192.0.2.1"), admission.admit("192.0.2.2")
    assert refusal(admission, "192.0.2.3") is Reason.TOO_MANY_CONNECTIONS
    first.release()
    first.release()
    admission.admit("192.0.2.3")
    assert refusal(admission, "192.0.2.4") is Reason.TOO_MANY_CONNECTIONS


def test_one_source_is_bounded_until_it_proved_itself() -> None:
    admission = Admission(99, 2)
    first, second = admission.admit("2001:db8::1"), admission.admit("2001:db8::2")
    assert refusal(admission, "2001:db8::3") is Reason.TOO_MANY_FROM_SOURCE
    admission.admit("2001:db8:0:1::1")
    first.authenticated()
    third = admission.admit("2001:db8::3")
    first.release()
    assert refusal(admission, "2001:db8::4") is Reason.TOO_MANY_FROM_SOURCE
    for ticket in (second, third):
        ticket.release()
    assert admission.open_connections == 1


def test_unix_sockets_are_bound_by_the_total_only() -> None:
    admission = Admission(5, 1)
    for _ in range(5):
        admission.admit("")
    assert refusal(admission, "") is Reason.TOO_MANY_CONNECTIONS
