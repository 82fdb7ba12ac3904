"""Numbers of the other end in the attach: out of its range each is refused, and the setting is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.fakes.memory_link import hello, welcome
from tunnel_core.limits import MIB, Limits
from tunnel_core.reasons import Reason
from tunnel_core.session.handshake import AgentHandshake, ServerHandshake
from tunnel_core.session.profiles import PROFILES
from tunnel_core.session.ranges import HELLO, WELCOME, why_out_of_range
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Rejected, Welcome
from tunnel_server.commands import config_text

LIMITS = Limits()
MOST = 2**64 - 1


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        (
            {"ping_interval_ms": 0},
            "allowed is 100 to 3600000; correct [session] ping_interval_seconds of the server",
        ),
        ({"ping_interval_ms": 99}, "the server sent ping_interval_ms = 99; allowed is 100 to 3600000"),
        ({"ping_interval_ms": MOST}, "the server sent ping_interval_ms = 18446744073709551615"),
        ({"missed_pings": 0}, "allowed is 1 to 100; correct [session] missed_pings of the server"),
        ({"missed_pings": MOST}, "the server sent missed_pings"),
        ({"max_streams": 0}, "the server sent max_streams = 0"),
        ({"early_data_limit": MOST}, "the server sent early_data_limit"),
        (
            {"initial_credit": 0},
            "the server sent initial_credit = 0; allowed is 1 to 1073741824; update the older end",
        ),
        ({"initial_credit": MOST}, "the server sent initial_credit"),
        ({"grace_ms": MOST}, "allowed is 0 or 1 to 3600000; correct [session] grace_seconds of the server"),
    ],
)
def test_the_agent_refuses_a_welcome(numbers: dict[str, int], why: str) -> None:
    steps = AgentHandshake(hello(LIMITS))
    with pytest.raises(ProtocolError, match=re.escape(why)) as caught:
        steps.receive(welcome(LIMITS)._replace(**numbers))
    assert caught.value.reason is Reason.NUMBER_OUT_OF_RANGE
    assert steps.welcome is None


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"initial_credit": MOST}, "the agent sent initial_credit"),
        ({"max_bytes_per_second": 1}, "correct [link] max_bytes_per_second of the agent"),
        ({"max_bytes_per_second": MOST}, "allowed is 0 or 1000 to 10000000000"),
    ],
)
def test_the_server_rejects_a_hello_and_offers_nothing(numbers: dict[str, int], why: str) -> None:
    def offer(_: object) -> Welcome:
        raise AssertionError("it was offered a session")

    steps = ServerHandshake(offer)
    answer = steps.receive(hello(LIMITS)._replace(**numbers))
    assert isinstance(answer, Rejected) and answer.reason is Reason.NUMBER_OUT_OF_RANGE
    assert why in answer.detail
    assert steps.welcome is None


def test_numbers_at_both_ends_of_each_range_are_taken() -> None:
    for place in ("least", "most"):
        edge = {name: getattr(allowed, place) for name, allowed in WELCOME.items()}
        assert why_out_of_range(welcome(LIMITS)._replace(**edge)) == ""
        edge = {name: getattr(allowed, place) for name, allowed in HELLO.items()}
        assert why_out_of_range(hello(LIMITS)._replace(**edge)) == ""


def test_the_numbers_that_our_programs_send_are_in_range() -> None:
    assert why_out_of_range(welcome(LIMITS, grace_ms=int(LIMITS.grace_seconds * 1000))) == ""
    assert why_out_of_range(hello(LIMITS)) == ""
    for profile in PROFILES.values():
        assert WELCOME["ping_interval_ms"].holds(profile.idle_ping_seconds * 1000)
    assert WELCOME["initial_credit"].holds(LIMITS.max_credit)
    assert WELCOME["early_data_limit"].holds(1 * MIB)


def test_the_settings_that_a_refusal_names_exist() -> None:
    text = Path(config_text.__file__).read_text()
    for allowed in WELCOME.values():
        section, _, key = allowed.setting.partition(" ")
        assert (section in text and f"# {key} = " in text) or not allowed.setting
