"""Which route answers, who may use it, and route tables that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import h11
import pytest

from tunnel_core.http.head import HttpRefused
from tunnel_core.http.router import (
    CONNECT,
    GET,
    POST,
    READ,
    Route,
    RoutedRequest,
    Router,
    Section,
    WhoMay,
)
from tunnel_core.http.server import HttpConnection
from tunnel_core.reasons import Reason, Refused


def _members_only(caller: str, _: h11.Request) -> str:
    if caller != "kim":
        raise Refused(Reason.UNAUTHENTICATED)
    return f"member {caller}"


ANYBODY: WhoMay[str, str] = WhoMay("anybody", lambda caller, _: caller)
MEMBERS: WhoMay[str, str] = WhoMay("members", _members_only)


class Site:
    """A router whose handlers note their name, what was proven, the rest of the path, and the query."""

    def __init__(self, *sections: Section[str]) -> None:
        self.calls: list[tuple[str, str, str, str]] = []
        self.router = Router(sections)

    async def ask(self, target: str, method: str = "GET", caller: str = "kim") -> str:
        """The name of the section that the answer comes from."""
        request = h11.Request(method=method, target=target, headers=[("host", "x")])
        match = self.router.find(request)
        await self.router.answer(match, cast(HttpConnection, self), request, caller)
        return match.section.name

    async def refusal(self, target: str, method: str = "GET", caller: str = "kim") -> tuple[Reason, str]:
        with pytest.raises(Refused) as caught:
            await self.ask(target, method, caller)
        return caught.value.reason, caught.value.detail


def route(methods: tuple[str, ...], path: str, who_may: WhoMay[str, str] = MEMBERS) -> Route[str]:
    async def handle(routed: RoutedRequest, proof: str) -> None:
        site = cast(Site, routed.http)
        site.calls.append((path, proof, routed.rest, routed.query))

    return Route(methods, path, who_may, handle)


def section(
    prefix: str | None, *routes: Route[str], who_may: WhoMay[str, str] = MEMBERS, name: str = ""
) -> Section[str]:
    return Section(name or str(prefix), prefix, who_may, routes)


async def test_the_longest_path_wins_whatever_the_order() -> None:
    routes = [route(GET, path) for path in ("/a/*", "/a/b/*", "/a/b", "/a/b/c")]
    for sections in ([section("/a/", *routes), section("")], [section(""), section("/a/", *routes[::-1])]):
        site = Site(*sections)
        for target in ("/a/x/y?q=1", "/a/b/x", "/a/b?", "/a/b/c", "/a/"):
            assert await site.ask(target) == "/a/"
        assert site.calls == [
            ("/a/*", "member kim", "x/y", "q=1"),
            ("/a/b/*", "member kim", "x", ""),
            ("/a/b", "member kim", "", ""),
            ("/a/b/c", "member kim", "", ""),
            ("/a/*", "member kim", "", ""),
        ]


async def test_a_handler_gets_the_verified_caller_and_runs_for_no_other() -> None:
    site = Site(section("", route(GET, "/open", ANYBODY), route(GET, "/closed")))
    await site.ask("/open", caller="eve")
    await site.ask("/closed")
    assert (await site.refusal("/closed", caller="eve"))[0] is Reason.UNAUTHENTICATED
    assert [call[:2] for call in site.calls] == [("/open", "eve"), ("/closed", "member kim")]


async def test_a_section_shows_its_paths_and_methods_to_permitted_callers_only() -> None:
    known = section("/open/", route(POST, "/open/x", MEMBERS), who_may=ANYBODY)
    site = Site(known, section("/closed/", route(GET, "/closed/x", ANYBODY)), section(""))
    assert (await site.refusal("/open/x", caller="eve"))[0] is Reason.METHOD_NOT_ALLOWED
    assert (await site.refusal("/open/y", caller="eve"))[0] is Reason.NOT_FOUND
    for target, method in (("/closed/x", "POST"), ("/closed/y", "GET"), ("/", "GET"), ("x:1", "CONNECT")):
        assert (await site.refusal(target, method, "eve"))[0] is Reason.UNAUTHENTICATED
    assert site.calls == []


async def test_refusals_name_what_there_is() -> None:
    probes = section(None, route(READ, "/healthz", ANYBODY), name="probes")
    site = Site(probes, section("/api/", route(GET, "/api/a"), route(POST, "/api/b")), section(""))
    assert await site.refusal("/healthz", "PUT") == (Reason.METHOD_NOT_ALLOWED, "use GET or HEAD here")
    with pytest.raises(HttpRefused) as caught:
        await site.ask("/healthz", "PUT")
    assert caught.value.headers == (("allow", "GET, HEAD"),)
    with pytest.raises(HttpRefused) as caught:
        await site.ask("x:1", "CONNECT")
    assert caught.value.headers == (("allow", ""),), "no method is allowed there"
    assert await site.refusal("/api/c") == (
        Reason.NOT_FOUND,
        "there is nothing at /api/c; there is /api/a, /api/b",
    )
    assert (await site.refusal("/x?y=z"))[1] == "there is nothing at /x; there is /healthz, /api/"
    assert (await site.refusal("/" + "x" * 900))[1].startswith(f"there is nothing at /{'x' * 199}; ")
    assert (await site.refusal("x:1", "CONNECT"))[0] is Reason.METHOD_NOT_ALLOWED


async def test_connect_is_a_route_of_its_own() -> None:
    site = Site(section(None, route(CONNECT, "CONNECT NODE:PORT"), name="connect"), section(""))
    for target in ("edge1:80", "/x"):
        await site.ask(target, "CONNECT")
    assert len(site.calls) == 2
    assert (await site.refusal("edge1:80"))[0] is Reason.NOT_FOUND


@pytest.mark.parametrize("who_may", [None, lambda caller, request: caller, "anybody"])
def test_a_route_that_does_not_state_who_may_use_it_does_not_construct(who_may: Any) -> None:
    async def handle(_: RoutedRequest, __: object) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="does not state who may use it"):
        Route(GET, "/x", who_may, handle)
    with pytest.raises(TypeError):
        Route(GET, "/x", handler=handle)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ([section("", route(GET, "/x"), route(READ, "/x"))], "two routes answer GET /x"),
        ([section("/x", route(GET, "/x/*")), section("", route(GET, "/x/*"))], "two routes answer GET /x/"),
        ([section(None, route(CONNECT, "a")), section("", route(CONNECT, "b"))], "two routes answer CONNECT"),
        ([section("/a/", route(GET, "/a/x"))], "no section answers"),
        ([], "no section answers"),
    ],
)
def test_tables_that_cannot_be_made(sections: Sequence[Section[str]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Router(sections)
