"""The states of a link as users see them: in the agent's state, on the page, and in the command."""

from __future__ import annotations

from typing import Any

from tests.agent.status.test_report import EVIL, SERVICES, Clock, FakeLink, page_of, state_of
from tunnel_agent.commands.status import _is_attached, _lines
from tunnel_agent.status.link_history import LinkHistory
from tunnel_agent.status.report import as_json, status_of
from tunnel_agent.status.state import AgentState
from tunnel_core.reasons import Reason
from tunnel_core.session.state import Loss, SessionEvent, SessionState


def report(state: AgentState) -> dict[str, Any]:
    return as_json(status_of(state, SERVICES, ()))


def line(state: AgentState) -> str:
    return next(line for line in _lines(report(state)) if line.startswith("link ")).split(maxsplit=1)[1]


def kinds(state: AgentState) -> list[str]:
    return [event.kind for event in state.link_view.events]


def in_grace(clock: Clock) -> AgentState:
    link = FakeLink()
    state = state_of(clock, link)
    clock.now += 60
    link.lost = Loss(0.0, Reason.CARRIER_LOST, "connection reset")
    enter(state, SessionState.GRACE)
    clock.now += 8
    return state


def enter(state: AgentState, link_state: SessionState, event: SessionEvent | None = None) -> None:
    """Record an event of the link."""
    assert isinstance(state.link, FakeLink)
    state.link.state = link_state
    state.note_link(event)


def test_an_agent_is_away_until_it_attached_once() -> None:
    clock = Clock()
    state = state_of(clock)
    clock.now += 5
    assert line(state) == "away for 5 s (not attached yet); attaching, server a:7001"
    assert not _is_attached(report(state))
    assert kinds(state) == []


def test_attached() -> None:
    state = state_of(Clock(), FakeLink())
    assert line(state) == "attached for 0 s, server a:7001"
    assert _is_attached(report(state))
    assert report(state)["link"]["round_trip_seconds"] == 0.0234
    assert kinds(state) == ["attached"]


def test_degraded_is_attached_and_shows_the_cause() -> None:
    clock = Clock()
    state = state_of(clock, FakeLink())
    enter(state, SessionState.DEGRADED)
    clock.now += 3
    assert line(state) == "degraded for 3 s (the server did not acknowledge a packet in time), server a:7001"
    assert _is_attached(report(state))
    assert "has answered late for 3 s" in page_of(state)
    enter(state, SessionState.ATTACHED)
    assert kinds(state) == ["attached", "degraded", "attached"]


def test_in_grace_shows_the_start_the_cause_and_the_time_left() -> None:
    state = in_grace(Clock())
    assert line(state) == (
        "in grace since 2023-11-14 22:14:20Z (carrier_lost: connection reset), server a:7001; "
        "streams wait 1 min 52 s more"
    )
    assert not _is_attached(report(state))
    assert report(state)["link"]["grace_seconds_left"] == 112
    page = page_of(state)
    assert "was lost 8 s ago (carrier_lost: connection reset); streams wait 1 min 52 s more" in page
    assert ">in grace</span>" in page


def test_a_new_carrier_is_news_without_a_grace_before_it() -> None:
    state = state_of(Clock(), FakeLink())
    state.note_link(SessionEvent.RESUMED)
    assert kinds(state) == ["resumed", "attached"]


def test_back_from_grace_is_resumed() -> None:
    state = in_grace(Clock())
    enter(state, SessionState.ATTACHED, SessionEvent.RESUMED)
    assert kinds(state) == ["resumed", "grace", "attached"]
    assert report(state)["link"]["grace_seconds_left"] is None
    assert "resumed" in page_of(state)


def test_away_shows_the_cause() -> None:
    clock = Clock()
    state = state_of(clock, FakeLink())
    state.detached(Reason.PING_TIMEOUT, "2 pings were not answered")
    state.waiting(12.0)
    clock.now += 3
    why = "ping_timeout: 2 pings were not answered"
    assert line(state) == f"away for 3 s ({why}); next attempt in 9 s"
    assert f"away for 3 s ({why}); the next attempt is in 9 s" in page_of(state)
    assert not _is_attached(report(state))


def test_a_degraded_link_that_recovers_is_shown_as_attached() -> None:
    clock, link = Clock(), FakeLink()
    state = state_of(clock, link)
    enter(state, SessionState.DEGRADED)
    clock.now += 4
    link.state = SessionState.ATTACHED
    assert line(state) == "attached for 0 s, server a:7001"


def test_a_link_that_ended_is_away_once_its_reason_is_known() -> None:
    state = in_grace(Clock())
    enter(state, SessionState.ENDED)
    assert kinds(state) == ["grace", "attached"]
    state.detached(Reason.GRACE_EXPIRED, "the link did not come back within 120 s")
    assert kinds(state) == ["away", "grace", "attached"]
    assert "grace_expired" in line(state)


def test_attempts_that_fail_are_no_events() -> None:
    state = state_of(Clock())
    state.trouble("cannot attach to a:7001: connection refused")
    state.detached()
    assert kinds(state) == []


def test_a_stopping_agent_is_no_longer_attached() -> None:
    state = state_of(Clock(), FakeLink())
    state.stopping()
    assert line(state) == "stopping, server a:7001"
    assert not _is_attached(report(state))


def test_events_are_listed_newest_first_and_bounded() -> None:
    clock = Clock()
    history = LinkHistory(clock)
    for _ in range(30):
        clock.now += 1
        history.enter(SessionState.DEGRADED, None, "late")
        history.enter(SessionState.ATTACHED)
    events = history.view(None).events
    assert len(events) == 20
    assert [event.kind for event in events[:2]] == ["attached", "degraded"]


def test_the_same_state_again_renews_the_why_alone() -> None:
    clock = Clock()
    history = LinkHistory(clock)
    history.enter(SessionState.GRACE, Reason.CARRIER_LOST, "connection reset", grace_seconds=120)
    clock.now += 5
    history.enter(SessionState.GRACE, Reason.CARRIER_LOST, "the last attempt failed", grace_seconds=120)
    view = history.view(None)
    assert (view.since, view.grace_until) == (clock.now - 5, clock.now + 115)
    assert view.detail == "the last attempt failed"
    assert len(view.events) == 1


def test_reasons_of_others_become_no_markup() -> None:
    state = state_of(Clock(), FakeLink())
    state.detached(Reason.SESSION_LOST, EVIL)
    assert "<script>" not in page_of(state)


def test_the_command_prints_the_events() -> None:
    state = in_grace(Clock())
    printed = [text for text in _lines(report(state)) if text.startswith("event")]
    assert printed == [
        "event     2023-11-14 22:14:20Z grace carrier_lost connection reset",
        "event     2023-11-14 22:13:20Z attached",
    ]
