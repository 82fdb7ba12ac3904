"""The answer of every HTTP listener, at every path, to every method and caller, as in ``answers.txt``.

A line of the table has the path and then an answer for each method, all those with the same answer together:
the status, the end of the content type, the reason's word, and the value of ``Allow``.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.processes.listeners import (
    CONNECT,
    METHODS,
    Ask,
    asking,
    kim,
    listener_paths,
    open_listeners,
    open_sections,
)
from tunnel_server.admin.actions import READS, WRITES

TABLE = Path(__file__).with_name("answers.txt")


async def test_each_listener_answers_as_in_the_table(tmp_path: Path) -> None:
    lines: list[str] = []
    async with open_listeners(tmp_path) as listeners:
        assert listeners.keys() == listener_paths().keys()
        for name, paths in listener_paths().items():
            lines += ["", f"[{name}]"]
            for path in paths:
                lines.append(f"{path:36} {await _answers(listeners[name], METHODS, path)}".rstrip())
            for authority in CONNECT:
                lines.append(f"{authority:36} {await _answers(listeners[name], ('CONNECT',), authority)}")
    assert lines[1:] == TABLE.read_text().splitlines()


async def _answers(ask: Ask, methods: tuple[str, ...], target: str) -> str:
    by_answer: dict[str, list[str]] = {}
    for method in methods:
        by_answer.setdefault(await ask(method, target), []).append(method)
    return "  ".join(f"{','.join(found)} {answer}" for answer, found in by_answer.items())


USER, ANYBODY, ADMINISTRATOR = "a user in good standing", "anybody", "an administrator"
ROUTES = {
    ("GET", "/.well-known/est/cacerts"): ANYBODY,
    ("GET", "/.well-known/est/csrattrs"): ANYBODY,
    ("POST", "/.well-known/est/simpleenroll"): ANYBODY,
    ("POST", "/.well-known/est/simplereenroll"): "any proven certificate",
    ("GET", "/api/v1/join"): ANYBODY,
    ("CONNECT", "CONNECT NODE:PORT"): USER,
    **{("GET", f"/api/v1/{name}"): USER for name in ("nodes", "nodes/*", "sessions", "streams")},
    **{("GET", f"/api/v1/{name}"): USER for name in ("events", "policy", "status", "version")},
    **{("GET", f"/api/v1/admin/{name}"): ADMINISTRATOR for name in READS},
    **{("POST", f"/api/v1/admin/{name}"): ADMINISTRATOR for name in WRITES},
}


async def test_each_route_of_the_server_states_its_callers(tmp_path: Path) -> None:
    async with open_sections(tmp_path) as (_, sections):
        found = [
            ((method, route.path), route.who_may.name)
            for section in sections
            for route in section.routes
            for method in route.methods
        ]
        assert dict(found) == ROUTES
        assert len(found) == len(ROUTES)
        who = {section.name: section.who_may.name for section in sections}
        assert who == {"est": ANYBODY, "api": USER, "connect": USER, "admin": ADMINISTRATOR}


async def test_a_user_who_is_no_administrator_gets_nothing_of_its_routes_anywhere(tmp_path: Path) -> None:
    async with open_sections(tmp_path) as (edge, sections):
        ask = await asking(edge, edge.https_entrance(kim, *sections))
        for method, path in ROUTES:
            if path.startswith("/api/v1/admin/"):
                assert await ask(method, path) == "403:plain:wrong_role"
        assert await ask("GET", "/api/v1/admin/nothing") == "403:plain:wrong_role"
        assert await ask("POST", "/api/v1/admin/tokens") == "403:plain:wrong_role"
