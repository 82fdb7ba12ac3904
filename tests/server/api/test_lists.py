"""Long lists of the API use a bounded part of the event loop, however many clients ask, and for how long."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import h11
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.server.api.test_status import here
from tests.support.fakes.edge import TRUST_DOMAIN, Edge, echo, open_edge
from tunnel_core.http.router import Router, Section
from tunnel_core.http.server import HttpConnection
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream
from tunnel_server.api.lists import (
    MAX_UNDELIVERED_LISTS,
    PIECE_ROWS,
    ROWS_PER_SECOND,
    Listing,
    Page,
    UserTurns,
    parse_page,
)
from tunnel_server.auth.callers import USER, Caller
from tunnel_server.auth.users import User
from tunnel_server.listeners.admission import Ticket
from tunnel_server.listeners.listener import AcceptedConnection
from tunnel_server.nodes.registry import Node


class Fleet:
    """Names to list. Counts the rows that were made, and the most rows without a rest."""

    def __init__(self, size: int, *, is_prompt: bool = False) -> None:
        self.names = [f"edge{number:05}" for number in range(size)]
        self.made = 0
        self.longest = self._since_rest = 0
        self.listing = Listing("nodes", lambda: self.names, str, self._row, is_prompt=is_prompt)

    def _row(self, name: str) -> dict[str, object]:
        self.made += 1
        self._since_rest += 1
        self.longest = max(self.longest, self._since_rest)
        return {"name": name, "made": self.made}

    async def watch_rests(self) -> None:
        """Every pass of the event loop ends what was made without a rest."""
        while True:
            self._since_rest = 0
            await trio.lowlevel.checkpoint()

    async def ask(self, page: Page = Page()) -> dict[str, object]:  # noqa: B008 - it is immutable
        answer: dict[str, object] = json.loads((await self.listing.answer(page, None)).body)
        return answer


def names_of(answer: dict[str, object]) -> list[str]:
    nodes = answer["nodes"]
    assert isinstance(nodes, list)
    return [node["name"] for node in nodes]


async def test_a_list_is_made_in_pieces() -> None:
    fleet = Fleet(500)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.watch_rests)
        assert names_of(await fleet.ask()) == fleet.names
        nursery.cancel_scope.cancel()
    assert fleet.longest <= 2 * PIECE_ROWS


async def test_rows_of_a_user_are_selected_in_pieces_and_count_when_they_are_left_out() -> None:
    fleet = Fleet(500)
    examined: list[str] = []
    rests: list[int] = []

    def may_read(name: str) -> bool:
        examined.append(name)
        return name == fleet.names[0]

    async def watch() -> None:
        while True:
            rests.append(len(examined))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        answer = await fleet.listing.answer(Page(), may_read)
        nursery.cancel_scope.cancel()
    assert names_of(json.loads(answer.body)) == fleet.names[:1]
    assert (len(examined), answer.rows) == (500, 500)
    assert max(after - before for before, after in itertools.pairwise(rests)) <= 50


async def test_a_list_of_2000_is_made_once_a_second_however_many_ask(autojump_clock: MockClock) -> None:
    fleet = Fleet(2000)

    async def loop() -> None:
        while True:
            await fleet.ask()

    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(loop)
    assert 15 <= fleet.listing.builds <= 21


async def test_a_short_list_is_there_at_once() -> None:
    fleet = Fleet(5)
    with trio.fail_after(5):
        for _ in range(20):
            await fleet.ask()


async def test_an_answer_is_never_older_than_its_request(autojump_clock: MockClock) -> None:
    fleet = Fleet(100)
    seen: list[list[str]] = []

    async def ask() -> None:
        seen.append(names_of(await fleet.ask()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.001)  # the first one is being made
        fleet.names = [*fleet.names, "new"]
        for _ in range(10):
            nursery.start_soon(ask)
    assert all("new" in names for names in seen[1:])
    assert fleet.listing.builds == 2


async def test_a_prompt_list_answers_between_two_lists_with_the_last_one(autojump_clock: MockClock) -> None:
    fleet = Fleet(5000, is_prompt=True)
    await fleet.ask()
    with trio.fail_after(0.01):
        for _ in range(10):
            assert len(names_of(await fleet.ask())) == 5000
    assert fleet.listing.builds == 1
    fleet.names = []
    await trio.sleep(5)
    assert names_of(await fleet.ask()) == []


async def test_a_client_that_leaves_while_the_list_is_made_leaves_it_to_the_next(
    autojump_clock: MockClock,
) -> None:
    fleet = Fleet(1000)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.005):
            await fleet.ask()
        nursery.start_soon(fleet.ask)
        with trio.fail_after(5):
            assert len(names_of(await fleet.ask())) == 1000


async def test_pages_are_of_one_snapshot(autojump_clock: MockClock) -> None:
    fleet = Fleet(2500)
    first = await fleet.ask(Page(1000))
    fleet.names = []
    second = await fleet.ask(parse_page(f"limit=1000&after={first['next']}"))
    third = await fleet.ask(parse_page(f"limit=1000&after={second['next']}"))
    assert "next" not in third
    assert len([*names_of(first), *names_of(second), *names_of(third)]) == 2500
    assert {*names_of(first), *names_of(second), *names_of(third)} == {f"edge{n:05}" for n in range(2500)}
    assert fleet.listing.builds == 1
    assert fleet.listing._paged is None and fleet.listing._snapshot is None, "and nothing is kept behind it"


async def test_a_page_of_a_snapshot_that_is_gone_goes_on_behind_its_name(autojump_clock: MockClock) -> None:
    fleet = Fleet(30)
    for after in ("99:edge00009", "edge00009", "0:edge00009"):
        assert names_of(await fleet.ask(Page(5, after))) == fleet.names[10:15]


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=many", "limit=1e3", "limit=" + "9" * 99])
def test_a_limit_that_is_none_is_refused(query: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_page(query)
    assert caught.value.reason is Reason.BAD_REQUEST


def test_queries_of_other_versions_are_ignored() -> None:
    assert parse_page("all=1") == Page()
    assert parse_page("limit=99999") == Page(1000)
    assert parse_page("after=1:a") == Page(1000, "1:a")


class TestTurns:
    async def test_one_answer_of_a_user_at_a_time(self, autojump_clock: MockClock) -> None:
        turns, at_once, most = UserTurns(), 0, 0

        async def ask(user: str) -> None:
            nonlocal at_once, most
            async with turns.turn(user):
                at_once += 1
                most = max(most, at_once)
                await trio.sleep(1)
                at_once -= 1

        async with trio.open_nursery() as nursery:
            for user in ("mallory", "mallory", "mallory", "alice"):
                nursery.start_soon(ask, user)
        assert most == 2

    async def test_a_user_who_asks_for_too_much_at_once_is_refused_and_others_are_not(
        self, autojump_clock: MockClock
    ) -> None:
        turns, done = UserTurns(), trio.Event()

        async def take_in_slowly() -> None:
            async with turns.turn("mallory"):
                await done.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_in_slowly)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Refused) as caught:
                async with turns.turn("mallory"):
                    raise AssertionError
            assert caught.value.reason is Reason.TOO_MANY_OF_USER
            with trio.fail_after(1):
                async with turns.turn("alice"):
                    done.set()
        async with turns.turn("mallory"):
            pass

    async def test_an_answer_that_is_not_read_delays_no_other_one(self, autojump_clock: MockClock) -> None:
        turns, read = UserTurns(undelivered=2), trio.Event()

        async def stall() -> None:
            async with turns.turn("mallory") as turn:
                turn.made(1)
                await read.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stall)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1):
                async with turns.turn("mallory"):
                    pass
            nursery.start_soon(stall)
            await trio.sleep(1)
            with pytest.raises(Refused) as caught:
                async with turns.turn("mallory"):
                    raise AssertionError
            assert caught.value.reason is Reason.TOO_MANY_OF_USER
            read.set()
        async with turns.turn("mallory"):
            pass
        assert turns._users["mallory"].is_idle(trio.current_time())

    async def test_rows_have_a_rate(self, autojump_clock: MockClock) -> None:
        turns, start = UserTurns(), trio.current_time()
        for _ in range(5):
            async with turns.turn("mallory") as turn:
                turn.made(ROWS_PER_SECOND)
        assert trio.current_time() - start == pytest.approx(4, abs=0.1)

    async def test_users_leave_no_trace(self, autojump_clock: MockClock) -> None:
        turns = UserTurns()
        for number in range(1000):
            async with turns.turn(f"user{number}"):
                pass
        assert len(turns._users) <= 257


async def test_unread_lists_delay_no_short_answer(autojump_clock: MockClock) -> None:
    async with open_edge() as edge, trio.open_nursery() as nursery:
        edge.attach("edge1", echo)
        ask = asking(edge)

        stalled = [Reader(reads=False) for _ in range(MAX_UNDELIVERED_LISTS)]
        for one in stalled:
            nursery.start_soon(ask, "/api/v1/nodes", one)
        await trio.sleep(1)
        assert all(one.begun for one in stalled)
        with trio.fail_after(1):
            for path in ("version", "nodes/edge1", "events", "nodes?brief=1"):
                reader = Reader(reads=True)
                await ask(f"/api/v1/{path}", reader)
                assert reader.begun
        with pytest.raises(Refused):
            await ask("/api/v1/nodes", Reader(reads=True))
        nursery.cancel_scope.cancel()


async def test_completion_does_not_wait_between_two_lists(autojump_clock: MockClock) -> None:
    async with open_edge() as edge:
        for number in range(1000):
            edge.attach(f"edge{number}", echo)
        ask = asking(edge)
        with trio.fail_after(0.25):  # half of the time between two lists
            for _ in range(3):
                await ask("/api/v1/nodes?brief=1", Reader(reads=True))


def asking(edge: Edge) -> Callable[[str, Reader], Awaitable[None]]:
    """Return a function with which a user requests a path of the API."""
    router = Router([edge.api(), Section("api", "", USER, ())])
    accepted = AcceptedConnection(cast(SocketStream, None), "127.0.0.1:4711", cast(Ticket, None))
    caller = Caller(accepted, User("alice", Role.USER, TRUST_DOMAIN), edge.watch)

    async def ask(path: str, reader: Reader) -> None:
        request = h11.Request(method="GET", target=path, headers=[("host", "x")])
        await router.answer(router.find(request), cast(HttpConnection, reader), request, caller)

    return ask


class Reader:
    """A client that reads an answer, or stops before its end."""

    def __init__(self, *, reads: bool) -> None:
        self.begun = False
        self._reads = reads

    async def respond(self, *_: object) -> None:
        self.begun = True
        if not self._reads:
            await trio.sleep_forever()


@pytest.mark.parametrize("path", ["nodes", "nodes?brief=1", "nodes?limit=1000", "status"])
async def test_others_run_while_the_nodes_are_gone_through(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pages through real HTTP, with a count of the nodes that one pass of the loop handles."""
    seen = longest = 0
    state = Node.state.fget

    def counted(node: Node) -> str:
        nonlocal seen, longest
        seen += 1
        longest = max(longest, seen)
        return str(state(node)) if state else ""

    async def pass_by() -> None:
        nonlocal seen
        while True:
            seen = 0
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Node, "state", property(counted))
    async with here(tmp_path) as site, trio.open_nursery() as nursery:
        for number in range(1000):
            site.edge.attach(f"edge{number}", echo)
        nursery.start_soon(pass_by)
        code, page = await site.get(f"/api/v1/{path}")
        nursery.cancel_scope.cancel()
    assert code == 200 and page["nodes"]
    assert 0 < longest <= 250
