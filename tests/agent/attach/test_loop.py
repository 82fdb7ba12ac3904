"""The attach loop in virtual time: the order of servers, the retries, and the state meanwhile."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.support.fakes import memory_link
from tunnel_agent.attach.loop import AttachLoop
from tunnel_agent.status.state import AgentState, OpenStream, Phase
from tunnel_core.limits import Limits
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.handshake import AttachRejected
from tunnel_core.session.state import Loss, SessionState
from tunnel_core.session.statistics import SessionStatistics
from tunnel_core.telemetry.counters import Counters
from tunnel_core.wire.frames import Rejected

CAP = 32.0


class FakeSession:
    session_id = "0badcafe"
    software = "qanat-server/test"
    state = SessionState.ATTACHED
    lost: Loss | None = None
    welcome = memory_link.welcome(Limits())
    mux_streams: tuple[StreamState, ...] = ()
    streams: Mapping[int, OpenStream] = {}

    def __init__(self) -> None:
        self._ended = trio.Event()
        self._why = (Reason.CARRIER_LOST, "the carrier broke")

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(round_trip_seconds=0.05)

    def drain(self, deadline_seconds: float) -> None:
        raise AssertionError("the loop never drains")

    def end(self, reason: Reason, detail: str = "") -> None:
        self._why = (reason, detail or reason.meaning)
        self._ended.set()

    async def wait_ended(self) -> tuple[Reason, str]:
        await self._ended.wait()
        return self._why


class Servers:
    """Answers attempts from a script: with a refusal, or with a session of some seconds and its end."""

    def __init__(self, *script: Refused | tuple[float, Reason]) -> None:
        self._script: Iterator[Refused | tuple[float, Reason]] = iter(script)
        self.attempts: list[tuple[float, str]] = []
        self.attached = trio.Event()
        self.given_up = 0

    @asynccontextmanager
    async def open_session(self, server: str) -> AsyncIterator[FakeSession]:
        self.attempts.append((trio.current_time(), server))
        await trio.lowlevel.checkpoint()
        answer = next(self._script, None)
        if isinstance(answer, Refused):
            raise answer
        session = FakeSession()
        try:
            async with trio.open_nursery() as nursery:
                if answer is not None:
                    nursery.start_soon(self._end_after, session, *answer)
                else:
                    self.attached.set()
                yield session
                nursery.cancel_scope.cancel()
        finally:
            self.given_up += 1

    async def _end_after(self, session: FakeSession, seconds: float, reason: Reason) -> None:
        await trio.sleep(seconds)
        session.end(reason)

    def gaps(self) -> list[float]:
        times = [when for when, _ in self.attempts]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


REFUSED = Refused(Reason.CARRIER_LOST, "connection refused")


def state_of(*names: str) -> AgentState:
    return AgentState("edge1", names or ("a:7001",), clock=trio.current_time)


async def attach_until_it_stays(servers: Servers, state: AgentState) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(AttachLoop(servers.open_session, state, Counters(), max_wait_seconds=CAP).run)
        await servers.attached.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert state.phase is Phase.IN_SESSION
        nursery.cancel_scope.cancel()
    assert state.link is None


@pytest.fixture
def longest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return jitter that always takes the whole window, so that a test can read the windows."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)


async def test_the_first_server_that_answers_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    servers, state = Servers(REFUSED, REFUSED), state_of("a:1", "b:1", "c:1")
    await attach_until_it_stays(servers, state)
    assert [server for _, server in servers.attempts] == ["a:1", "b:1", "c:1"]
    assert servers.gaps() == [0, 0]
    assert state.server == "c:1"
    assert [trouble.text for trouble in state.troubles] == [
        "cannot attach to a:1: connection refused",
        "cannot attach to b:1: connection refused",
    ]


async def test_waits_grow_to_the_cap(autojump_clock: trio.testing.MockClock, longest_waits: None) -> None:
    servers = Servers(*[REFUSED] * 8)
    await attach_until_it_stays(servers, state_of())
    assert servers.gaps() == pytest.approx([1, 2, 4, 8, 16, 32, 32, 32])


async def test_waits_are_spread_over_the_whole_window(autojump_clock: trio.testing.MockClock) -> None:
    servers = Servers(*[REFUSED] * 200)
    await attach_until_it_stays(servers, state_of())
    late = sorted(servers.gaps()[6:])
    assert late[0] < CAP * 0.1
    assert CAP * 0.9 < late[-1] <= CAP


async def test_a_session_that_lived_starts_the_back_off_over(
    autojump_clock: trio.testing.MockClock, longest_waits: None
) -> None:
    servers = Servers(REFUSED, REFUSED, (100.0, Reason.SERVER_STOPPING), REFUSED)
    await attach_until_it_stays(servers, state_of())
    assert servers.gaps() == pytest.approx([1, 2, 101, 1])


async def test_a_session_that_ended_young_does_not(
    autojump_clock: trio.testing.MockClock, longest_waits: None
) -> None:
    servers = Servers(REFUSED, (5.0, Reason.PING_TIMEOUT), REFUSED)
    await attach_until_it_stays(servers, state_of())
    assert servers.gaps() == pytest.approx([1, 5 + 2, 4])


async def test_after_a_takeover_the_other_agent_is_left_alone_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers, state = Servers((100.0, Reason.TAKEN_OVER)), state_of()
    await attach_until_it_stays(servers, state)
    assert servers.gaps()[0] - 100 >= CAP / 3
    assert "another agent runs as edge1" in state.troubles[0].text


async def test_a_server_that_was_restarted_has_offered_another_session(
    autojump_clock: trio.testing.MockClock, longest_waits: None
) -> None:
    servers = Servers((100.0, Reason.UNKNOWN_SESSION), (5.0, Reason.UNKNOWN_SESSION))
    await attach_until_it_stays(servers, state_of())
    assert servers.gaps() == pytest.approx([100, 5 + 1]), "one that ended young waits as any other"


async def test_the_servers_retry_time_is_used_within_a_bound(
    autojump_clock: trio.testing.MockClock, longest_waits: None
) -> None:
    later = AttachRejected(Rejected(Reason.TOO_MANY_SESSIONS, "full", 45_000))
    never = AttachRejected(Rejected(Reason.TOO_MANY_SESSIONS, "full", 10**9))
    servers = Servers(later, never)
    await attach_until_it_stays(servers, state_of())
    assert servers.gaps() == pytest.approx([45, 600])


async def test_each_failure_is_one_line_with_its_cause(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await attach_until_it_stays(Servers(REFUSED), state_of())
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == ["cannot attach to a:7001: connection refused"]


async def test_cancelling_gives_the_link_up(autojump_clock: trio.testing.MockClock) -> None:
    servers = Servers()
    await attach_until_it_stays(servers, state_of())
    assert servers.given_up == 1


async def test_the_state_has_the_time_of_the_next_attempt(
    autojump_clock: trio.testing.MockClock, longest_waits: None
) -> None:
    servers, state = Servers(REFUSED), state_of()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(AttachLoop(servers.open_session, state, Counters(), max_wait_seconds=CAP).run)
        await trio.sleep(0.5)
        assert state.phase is Phase.WAITING
        assert state.next_attempt_at - trio.current_time() == pytest.approx(0.5)
        nursery.cancel_scope.cancel()


ENDED = "the certificate of node edge1 ended on 2026-01-01"


@pytest.mark.parametrize(
    ("answer", "certificate_problem", "reason", "cure"),
    [
        (REFUSED, ENDED, "certificate_expired", ENDED),
        (Refused(Reason.REVOKED, "the name was revoked"), "", "revoked", "join again with a new token"),
    ],
)
async def test_an_agent_that_needs_an_operator_tries_every_five_minutes_with_one_line(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    answer: Refused,
    certificate_problem: str,
    reason: str,
    cure: str,
) -> None:
    caplog.set_level("INFO")
    servers = Servers(*[answer] * 4)
    attach_loop = AttachLoop(
        servers.open_session,
        state_of("a:1", "b:1"),
        Counters(),
        max_wait_seconds=CAP,
        certificate_problem=lambda: (certificate_problem, bool(certificate_problem)),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach_loop.run)
        await servers.attached.wait()
        nursery.cancel_scope.cancel()
    assert [server for _, server in servers.attempts] == ["a:1"] * 5
    assert all(300 <= gap <= 330 for gap in servers.gaps())
    lines = [record for record in caplog.records if "attached to" not in record.getMessage()]
    assert len(lines) == 4
    assert all(cure in line.getMessage() and line.fields["reason"] == reason for line in lines)


async def test_another_certificate_ends_the_wait(autojump_clock: trio.testing.MockClock) -> None:
    servers = Servers(Refused(Reason.REVOKED, "the name was revoked"))
    attach_loop = AttachLoop(servers.open_session, state_of(), Counters(), max_wait_seconds=CAP)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach_loop.run)
        await trio.sleep(7)
        attach_loop.retry_now()
        await servers.attached.wait()
        nursery.cancel_scope.cancel()
    assert servers.gaps() == [7]


@pytest.mark.parametrize("reason", [Reason.REVOKED, Reason.CERTIFICATE_EXPIRED])
async def test_a_session_that_ended_for_good_waits_as_long(
    autojump_clock: trio.testing.MockClock, reason: Reason
) -> None:
    servers, state = Servers((100.0, reason)), state_of()
    await attach_until_it_stays(servers, state)
    assert servers.gaps() == [400]
    assert "qanat-agent join SERVER --again" in state.troubles[0].text


async def test_a_clock_that_is_behind_is_named_and_tried_again_as_ever(
    autojump_clock: trio.testing.MockClock, longest_waits: None
) -> None:
    servers, state = Servers(REFUSED, REFUSED), state_of()
    attach_loop = AttachLoop(
        servers.open_session,
        state,
        Counters(),
        max_wait_seconds=CAP,
        certificate_problem=lambda: ("this machine's clock says 1970", False),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach_loop.run)
        await servers.attached.wait()
        nursery.cancel_scope.cancel()
    assert servers.gaps() == [1, 2]
    assert state.troubles[0].text.endswith("connection refused; this machine's clock says 1970")
