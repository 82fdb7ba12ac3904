"""The registry of nodes: takeover, memory of detached nodes, names, aliases, and their messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tunnel_core.names import node_alias
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.handshake import AttachRejected
from tunnel_core.session.state import Loss, SessionState
from tunnel_core.wire.frames import Hello
from tunnel_server.accounting.write_budget import WRITE_SECONDS, WRITES, writes_budget
from tunnel_server.events.event_log import EventKind
from tunnel_server.nodes import registry as nodes_module
from tunnel_server.nodes.registry import Nodes
from tunnel_server.nodes.takeovers import MAX_NODES, REPLACED_SECONDS, TakeoverLimiter


@dataclass
class PlainLink:
    node: str
    session_id: str = "00000001"
    peer_address: str = "192.0.2.1:5"
    software: str = "qanat-agent/0.1.0"
    ended: list[tuple[Reason, str]] = field(default_factory=list)
    state: SessionState = SessionState.ATTACHED
    lost: Loss | None = None
    instance: bytes = b"i"
    boot: bytes = b"b"

    def end(self, reason: Reason, detail: str = "") -> None:
        self.ended.append((reason, detail))


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nodes(clock: Clock) -> Nodes:
    return Nodes(clock.monotonic, clock.wall, lambda name: False)


def attach(nodes: Nodes, name: str, **kwargs: Any) -> PlainLink:
    session = PlainLink(name, **kwargs)
    nodes.attach(name, session)
    return session


def test_an_attached_node_is_found_by_name_and_alias(nodes: Nodes) -> None:
    session = attach(nodes, "edge.one")
    assert nodes.session_of("edge.one") is session
    assert nodes.name_of(node_alias("edge.one")) == "edge.one"
    assert nodes.find("edge.two") is None


def test_the_newest_session_takes_over_at_once(nodes: Nodes) -> None:
    old = attach(nodes, "edge-7", session_id="aa")
    new = attach(nodes, "edge-7", session_id="bb", peer_address="198.51.100.9:1")
    assert nodes.session_of("edge-7") is new
    assert [reason for reason, _ in old.ended] == [Reason.TAKEN_OVER]
    assert "198.51.100.9:1" in old.ended[0][1]
    nodes.detach(old, Reason.TAKEN_OVER)
    assert nodes.session_of("edge-7") is new
    assert [(event.kind.value, event.session_id) for event in nodes.events.after()] == [
        ("attached", "aa"),
        ("taken_over", "aa"),
        ("attached", "bb"),
    ]


def test_a_lost_link_whose_agent_comes_back_as_another_run_was_restarted(nodes: Nodes) -> None:
    old = attach(nodes, "edge-7", state=SessionState.GRACE)
    attach(nodes, "edge-7", instance=b"j")
    assert [reason for reason, _ in old.ended] == [Reason.AGENT_RESTARTED]


def test_a_node_has_the_category_that_a_request_would_meet(nodes: Nodes) -> None:
    session = attach(nodes, "edge-7")
    attached_id = nodes.events.last_id
    [node] = nodes.all()
    for state in (SessionState.ATTACHED, SessionState.DEGRADED, SessionState.GRACE):
        session.state = state
        assert node.state == state.value
    nodes.note_lost(session, Loss(1.0, Reason.CARRIER_LOST, "reset"))
    session.peer_address = "198.51.100.9:1"
    nodes.note_resumed(session)
    assert node.address == "198.51.100.9:1"
    nodes.detach(session, Reason.GRACE_EXPIRED, "too late")
    assert node.state == "gone"
    events = nodes.events.after(attached_id, "edge-7")
    assert [event.kind.value for event in events] == ["lost", "resumed", "expired"]
    assert nodes.events.after(0, "edge-8") == []


def test_a_node_shows_the_start_of_its_state(nodes: Nodes, clock: Clock) -> None:
    session = attach(nodes, "edge-7")
    [node] = nodes.all()
    began = clock.wall()
    clock.seconds += 10
    session.lost = Loss(1.0, Reason.CARRIER_LOST, "reset")
    nodes.note_lost(session, session.lost)
    assert (node.since, node.session_since, node.last_reason) == (clock.wall(), began, Reason.CARRIER_LOST)
    clock.seconds += 10
    session.lost = None
    nodes.note_resumed(session)
    assert (node.since, node.session_since, node.last_reason) == (clock.wall(), began, None)
    session.lost = Loss(1.0, Reason.CARRIER_LOST, "reset")
    nodes.note_lost(session, session.lost)
    lost_at = clock.wall()
    clock.seconds += 120
    nodes.detach(session, Reason.GRACE_EXPIRED, "too late")
    assert (node.since, node.last_seen_at, node.last_reason) == (lost_at, lost_at, Reason.GRACE_EXPIRED)
    with pytest.raises(Refused, match="last seen 2 min ago"):
        nodes.session_of("edge-7")


def hello_of(boot: bytes, instance: bytes = b"i") -> Hello:
    return Hello(1, 1, instance, boot, "test")


def try_attach(nodes: Nodes, boot: bytes, instance: bytes) -> PlainLink | None:
    """A whole attach of one run of an agent; None if it is refused as a duplicate."""
    try:
        nodes.check_duplicate("edge-7", hello_of(boot, instance))
    except AttachRejected as rejected:
        assert rejected.reason is Reason.DUPLICATE_NODE
        return None
    return attach(nodes, "edge-7", boot=boot, instance=instance)


def test_restarts_of_two_machines_do_not_evict_each_other_for_ever(nodes: Nodes, clock: Clock) -> None:
    """Each attach is of another run, so only the boot ids distinguish the machines."""
    for number, boot in enumerate([b"one", b"two"] * 2):
        incumbent = try_attach(nodes, boot, b"%d" % number)
        assert incumbent is not None
        clock.seconds += 15
    [node] = nodes.all()
    assert not nodes.is_duplicate(node)
    with pytest.raises(AttachRejected, match="another machine is attached as edge-7") as caught:
        nodes.check_duplicate("edge-7", hello_of(b"one", b"4"))
    assert caught.value.reason is Reason.DUPLICATE_NODE
    assert caught.value.retry_after_seconds == 60
    assert nodes.is_duplicate(node) and not incumbent.ended
    nodes.check_duplicate("edge-7", hello_of(b"two", b"3"))  # the attached run may attach again
    incumbent.state = SessionState.GRACE
    nodes.check_duplicate("edge-7", hello_of(b"one", b"5"))  # and so may a run that replaces a dead one
    clock.seconds += 121
    incumbent.state = SessionState.ATTACHED
    nodes.check_duplicate("edge-7", hello_of(b"one", b"6"))
    assert not nodes.is_duplicate(node)


def test_a_duplicate_is_one_event_a_minute_at_whatever_many_addresses_it_asks(
    nodes: Nodes, clock: Clock
) -> None:
    for instance in (b"a", b"b"):
        assert try_attach(nodes, b"one", instance) is not None
    for _ in range(3):
        for instance in (b"a", b"a", b"a", b"check", b"check"):  # three addresses of the server, and a check
            assert try_attach(nodes, b"one", instance) is None
        clock.seconds += 60
    assert [event.kind for event in nodes.events.newest(9)].count(EventKind.DUPLICATE) == 3


def test_a_machine_that_restarts_now_and_then_is_no_duplicate(nodes: Nodes, clock: Clock) -> None:
    for number in range(20):
        nodes.check_duplicate("edge-7", hello_of(b"%d" % number, b"%d" % number))
        attach(nodes, "edge-7", boot=b"%d" % number, instance=b"%d" % number)
        clock.seconds += 50


@pytest.mark.parametrize("other_boot", [b"host", b"another"])
def test_a_replaced_run_that_comes_back_is_a_second_agent(
    nodes: Nodes, clock: Clock, other_boot: bytes
) -> None:
    """Two containers of one host share the host's boot id."""
    first = try_attach(nodes, b"host", b"a")
    clock.seconds += 300
    second = try_attach(nodes, other_boot, b"b")
    assert first is not None and second is not None and first.ended[0][0] is Reason.TAKEN_OVER
    clock.seconds += 10
    assert try_attach(nodes, b"host", b"a") is None
    [node] = nodes.all()
    assert nodes.is_duplicate(node) and node.session is second and not second.ended
    # A supervisor that restarts the refused agent does not begin the contest again.
    clock.seconds += 60
    assert try_attach(nodes, b"host", b"a2") is None
    second.state = SessionState.GRACE  # the second one was killed
    assert try_attach(nodes, b"host", b"a") is not None


def test_two_agents_on_one_machine_settle_and_the_other_takes_over_when_one_is_stopped(
    nodes: Nodes, clock: Clock
) -> None:
    """An hour with both, with the waits of real agents: 10 s after a takeover, else the server's time."""
    due = {b"a": 0.0, b"b": 1.0}
    sessions: dict[bytes, PlainLink] = {}
    takeovers = 0
    end = clock.seconds + 3600
    base = clock.seconds
    while clock.seconds < end:
        clock.seconds += 1
        for run, at in due.items():
            holder = sessions.get(run)
            if holder is not None and holder.ended:
                del sessions[run]
                due[run] = clock.seconds - base + 10
                takeovers += 1
            elif holder is None and clock.seconds - base >= at:
                session = try_attach(nodes, b"host", run)
                if session is None:
                    due[run] = clock.seconds - base + 60
                else:
                    sessions[run] = session
    assert takeovers == 1 and sessions.keys() == {b"b"}
    nodes.detach(sessions[b"b"], Reason.AGENT_STOPPING)
    assert try_attach(nodes, b"host", b"a") is not None


def test_a_crash_loop_takes_over_each_time_at_once(nodes: Nodes, clock: Clock) -> None:
    """This holds whether or not the server has noticed that the previous run is dead."""
    for number in range(200):
        state = [SessionState.ATTACHED, SessionState.GRACE, SessionState.DEGRADED][number % 3]
        session = try_attach(nodes, b"host", b"run %d" % number)
        assert session is not None
        session.state = state
        clock.seconds += 0.5
    [node] = nodes.all()
    assert not nodes.is_duplicate(node)


def test_a_crash_loop_beside_a_live_agent_is_found(nodes: Nodes, clock: Clock) -> None:
    steady = try_attach(nodes, b"host", b"steady")
    for number in range(10):  # a second each, until the steady one has waited its ten
        assert try_attach(nodes, b"host", b"run %d" % number) is not None
        clock.seconds += 1
    assert steady is not None and steady.ended
    assert try_attach(nodes, b"host", b"steady") is None


def test_one_agent_may_begin_session_after_session(nodes: Nodes, clock: Clock) -> None:
    for _ in range(20):
        assert try_attach(nodes, b"host", b"a") is not None
        clock.seconds += 1


def test_the_memory_of_replaced_runs_is_bounded(nodes: Nodes, clock: Clock) -> None:
    limiter = TakeoverLimiter()
    for number in range(MAX_NODES + 5):
        limiter.note_replaced(f"edge-{number}", b"a", clock.seconds)
    assert not limiter.must_refuse("edge-4", b"a", clock.seconds, other_boot=False)
    assert limiter.must_refuse("edge-5", b"a", clock.seconds, other_boot=False)
    clock.seconds += REPLACED_SECONDS
    assert not limiter.must_refuse("edge-6", b"a", clock.seconds, other_boot=False)


def test_attaching_the_same_link_again_does_not_end_it(nodes: Nodes) -> None:
    session = attach(nodes, "edge-7")
    nodes.attach("edge-7", session)
    assert not session.ended


def test_a_gone_node_is_remembered_with_when_and_why(nodes: Nodes, clock: Clock) -> None:
    session = attach(nodes, "edge-7")
    nodes.detach(session, Reason.PING_TIMEOUT, "no answer")
    clock.seconds += 185
    with pytest.raises(Refused) as caught:
        nodes.session_of("edge-7")
    assert caught.value.reason is Reason.NODE_NOT_ATTACHED
    assert caught.value.detail.startswith("node edge-7 has no agent attached; last seen 3 min ago")
    (node,) = nodes.all()
    assert (node.session, node.last_reason) == (None, Reason.PING_TIMEOUT)


def test_an_unknown_nodes_refusal_names_the_nearest(nodes: Nodes) -> None:
    attach(nodes, "edge-7")
    with pytest.raises(Refused) as caught:
        nodes.session_of("edge-9")
    assert caught.value.reason is Reason.UNKNOWN_NODE
    assert caught.value.detail == "no node edge-9 is known here; nearest: edge-7"


def test_a_name_that_is_also_an_alias_is_ambiguous_but_each_can_be_reached(nodes: Nodes) -> None:
    attach(nodes, "edge.one")
    attach(nodes, node_alias("edge.one"))
    with pytest.raises(Refused) as caught:
        nodes.find(node_alias("edge.one"))
    assert caught.value.reason is Reason.AMBIGUOUS_NAME
    assert nodes.name_of("edge.one") == "edge.one"
    assert nodes.name_of(node_alias(node_alias("edge.one"))) == node_alias("edge.one")
    aliased = nodes.find_alias(node_alias("edge.one"))
    assert aliased is not None
    assert aliased.name == "edge.one"


def test_two_nodes_never_share_an_alias(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "node_alias", lambda name: "same")
    first = attach(nodes, "edge-1")
    with pytest.raises(Refused) as caught:
        attach(nodes, "edge-2")
    assert caught.value.reason is Reason.AMBIGUOUS_NAME
    assert nodes.name_of("edge-2") is None
    nodes.detach(first, Reason.SESSION_LOST)
    attach(nodes, "edge-2")
    assert nodes.name_of("same") == "edge-2"


def test_the_gone_are_bounded_in_number(clock: Clock) -> None:
    nodes = Nodes(clock.monotonic, clock.wall, lambda name: False, most_gone=3)
    for number in range(5):
        nodes.detach(attach(nodes, f"edge-{number}"), Reason.SESSION_LOST)
    assert [node.name for node in nodes.all()] == ["edge-2", "edge-3", "edge-4"]
    assert nodes.find_alias("edge-0") is None
    nodes.learn("edge-9")
    assert [node.name for node in nodes.all()] == ["edge-3", "edge-4", "edge-9"]


def test_a_gone_node_stays_known_however_long_it_is_off(nodes: Nodes, clock: Clock) -> None:
    nodes.detach(attach(nodes, "edge-1"), Reason.SESSION_LOST)
    clock.seconds += 300 * 86_400
    with pytest.raises(Refused, match="last seen 300 days ago") as caught:
        nodes.session_of("edge-1")
    assert caught.value.reason is Reason.NODE_NOT_ATTACHED


def test_a_node_that_the_store_knows_is_a_node(nodes: Nodes, clock: Clock) -> None:
    hour_ago = clock.wall() - timedelta(hours=3)
    nodes.learn("edge.one", known_at=hour_ago, last_seen_at=hour_ago, reason=Reason.PING_TIMEOUT)
    nodes.learn("edge-2")
    assert nodes.name_of(node_alias("edge.one")) == "edge.one"
    with pytest.raises(Refused, match=r"last seen 3 h ago \(the other end stopped") as caught:
        nodes.session_of("edge.one")
    assert caught.value.reason is Reason.NODE_NOT_ATTACHED
    with pytest.raises(Refused, match="has never attached; start its agent") as caught:
        nodes.session_of("edge-2")
    assert caught.value.reason is Reason.NODE_NOT_ATTACHED
    never = nodes.find_exact("edge-2")
    assert never is not None and (never.state, never.last_seen_at) == ("gone", None)
    session = attach(nodes, "edge-2")
    nodes.learn("edge-2")  # a renewal
    assert nodes.session_of("edge-2") is session
    assert len(nodes.all()) == 2


def test_a_revoked_node_is_reported_as_revoked(nodes: Nodes) -> None:
    nodes.learn("edge-1")
    nodes.is_revoked = lambda name: name == "edge-1"
    with pytest.raises(Refused, match="only with a new token: qanat-server token create") as caught:
        nodes.session_of("edge-1")
    assert caught.value.reason is Reason.REVOKED
    with pytest.raises(Refused) as caught:
        nodes.session_of("edge-3")
    assert caught.value.reason is Reason.UNKNOWN_NODE


def test_a_node_is_forgotten_unless_it_has_an_agent(nodes: Nodes) -> None:
    session = attach(nodes, "edge.1")
    with pytest.raises(Refused, match="has an agent attached; stop that agent"):
        nodes.forget("edge.1")
    nodes.detach(session, Reason.SESSION_LOST)
    nodes.forget("edge.1")
    assert nodes.all() == [] and nodes.find_alias(node_alias("edge.1")) is None
    assert nodes.events.newest(1)[0].kind.value == "forgotten"
    attach(nodes, "edge.1")  # its certificate is still good
    assert [node.name for node in nodes.all()] == ["edge.1"]


def test_writes_of_a_node_beyond_its_budget_are_left_out_and_counted() -> None:
    budget = writes_budget()
    assert [budget.note(("edge1", "lost"), 0.0) for _ in range(WRITES + 2)] == [0] * WRITES + [None, None]
    assert budget.note(("edge2", "lost"), 0.0) == budget.note(("edge1", "resumed"), 0.0) == 0
    assert [budget.note(("edge1", "lost"), WRITE_SECONDS) for _ in range(2)] == [2, None]
