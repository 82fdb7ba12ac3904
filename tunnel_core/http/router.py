"""The routes of an HTTP listener in one table: methods, path, allowed callers, handler.

1. Every route states its allowed callers as a :class:`WhoMay`. There is no default: a route without one
   cannot be constructed. The handler receives the result of ``WhoMay.check``, so mypy refuses a handler that
   needs a user on a route that is open to every caller.
2. Routes are grouped in sections. A section states which callers may learn that a path or method is unknown.
3. Paths are compared as they were sent: without percent-decoding, with a trailing slash, without the query.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import h11

from tunnel_core.http.head import HttpRefused
from tunnel_core.http.server import HttpConnection
from tunnel_core.reasons import Reason, Refused

GET = ("GET",)
READ = ("GET", "HEAD")
POST = ("POST",)
CONNECT = ("CONNECT",)
_MAX_SHOWN = 200
"""Limit of characters of an unknown path that the answer repeats."""

Caller = TypeVar("Caller")
CallerIn = TypeVar("CallerIn", contravariant=True)
Proof = TypeVar("Proof")
ProofOut = TypeVar("ProofOut", covariant=True)


@dataclass(frozen=True, slots=True)
class WhoMay(Generic[CallerIn, ProofOut]):
    """The callers that may use a route.

    ``check`` raises ``Refused`` for other callers. For an allowed caller it returns what the handler needs,
    such as the user.
    """

    name: str
    check: Callable[[CallerIn, h11.Request], ProofOut]


class RoutedRequest(NamedTuple):
    """A request at its route. ``rest`` is the part of the path that a ``*`` stands for."""

    http: HttpConnection
    request: h11.Request
    query: str
    rest: str


class Route(Generic[Caller]):
    """Answer requests for ``path`` that have one of ``methods`` with ``handler``, if ``who_may`` allows it.

    A path that ends in ``*`` matches every path that begins with the part before it. A CONNECT request has an
    authority and no path, so the path of that route only describes it.
    """

    __slots__ = ("answer", "methods", "path", "who_may")

    def __init__(
        self,
        methods: tuple[str, ...],
        path: str,
        who_may: WhoMay[Caller, Proof],
        handler: Callable[[RoutedRequest, Proof], Awaitable[None]],
    ) -> None:
        def answer(routed: RoutedRequest, caller: Caller) -> Awaitable[None]:
            return handler(routed, who_may.check(caller, routed.request))

        if not isinstance(who_may, WhoMay):
            raise TypeError(f"the route {path} does not state who may use it")
        self.methods = methods
        self.path = path
        self.who_may: WhoMay[Caller, object] = who_may
        self.answer = answer
        """Start the handler for an allowed caller and return its awaitable. Raises ``Refused`` for others."""


@dataclass(frozen=True, slots=True)
class Section(Generic[Caller]):
    """Routes of one part of a listener.

    Callers that ``who_may`` allows may learn that a path is unknown, or that it has other methods. The
    section answers for the unknown paths that begin with ``prefix``; with None it answers for no unknown
    path.
    """

    name: str
    prefix: str | None
    who_may: WhoMay[Caller, object]
    routes: Sequence[Route[Caller]]


Routes: TypeAlias = Mapping[bytes, Route[Caller]]
"""The routes of one path, by method."""


class Match(NamedTuple, Generic[Caller]):
    """Result of ``Router.find`` for a request. ``routes`` is empty for an unknown path."""

    section: Section[Caller]
    routes: Routes[Caller]
    query: str
    rest: str = ""


class Router(Generic[Caller]):
    """The routes of one listener.

    One of ``sections`` has an empty prefix, so that it answers for every path that no other section knows.
    Raises ``ValueError`` for two routes of one method and path, or if no section has an empty prefix.
    """

    def __init__(self, sections: Iterable[Section[Caller]]) -> None:
        self._sections = tuple(sections)
        self._connect: dict[bytes, Route[Caller]] = {}
        self._exact: dict[str, tuple[Section[Caller], dict[bytes, Route[Caller]]]] = {}
        self._below: dict[str, tuple[Section[Caller], dict[bytes, Route[Caller]]]] = {}
        self._prefixes: list[tuple[str, Section[Caller]]] = []
        for section in self._sections:
            if section.prefix is not None:
                self._prefixes.append((section.prefix, section))
            for route in section.routes:
                self._add(section, route)
        self._prefixes.sort(key=lambda found: -len(found[0]))
        self._below = dict(sorted(self._below.items(), key=lambda found: -len(found[0])))
        if not self._prefixes or self._prefixes[-1][0]:
            raise ValueError("no section answers for the paths that the others do not know")

    def _add(self, section: Section[Caller], route: Route[Caller]) -> None:
        for method in route.methods:
            routes = self._routes_of(section, route.path) if method != "CONNECT" else self._connect
            if routes.setdefault(method.encode(), route) is not route:
                raise ValueError(f"two routes answer {method} {route.path}")

    def _routes_of(self, section: Section[Caller], path: str) -> dict[bytes, Route[Caller]]:
        if path.endswith("*"):
            return self._below.setdefault(path[:-1], (section, {}))[1]
        return self._exact.setdefault(path, (section, {}))[1]

    def find(self, request: h11.Request) -> Match[Caller]:
        """Return the section and the routes for the request. Raises no error, also for an unknown path."""
        path, _, query = request.target.decode("ascii").partition("?")
        if request.method == b"CONNECT":
            return Match(self._prefixes[-1][1], self._connect, "")
        if found := self._exact.get(path):
            return Match(*found, query)
        for prefix, found in self._below.items():
            if path.startswith(prefix):
                return Match(*found, query, path[len(prefix) :])
        section = next(section for prefix, section in self._prefixes if path.startswith(prefix))
        return Match(section, {}, query)

    def answer(
        self, match: Match[Caller], http: HttpConnection, request: h11.Request, caller: Caller
    ) -> Awaitable[None]:
        """Start the handler and return its awaitable. Raises ``Refused`` if there is none for this caller.

        This is no coroutine, because a tunnel runs in its handler and each wake-up would pass through here.
        """
        route = match.routes.get(request.method)
        if route is None:
            match.section.who_may.check(caller, request)
            raise self._why_not(match, request)
        return route.answer(RoutedRequest(http, request, match.query, match.rest), caller)

    def _why_not(self, match: Match[Caller], request: h11.Request) -> Refused:
        if request.method == b"CONNECT":
            return _not_allowed("this listener does not answer CONNECT", [])
        if match.routes:
            methods = [method.decode() for method in match.routes]
            return _not_allowed(f"use {' or '.join(methods)} here", methods)
        path = request.target.decode("ascii").partition("?")[0][:_MAX_SHOWN]
        known = ", ".join(self._known(match.section)) or "nothing else"
        return Refused(Reason.NOT_FOUND, f"there is nothing at {path}; there is {known}")

    def _known(self, section: Section[Caller]) -> list[str]:
        """Return the section's paths; for the last section also the other sections' paths or prefixes."""
        known = [route.path for route in section.routes]
        for other in self._sections if not section.prefix else ():
            if other.prefix is None:
                known += [route.path for route in other.routes]
            elif other.prefix:
                known.append(other.prefix)
        return known


def _not_allowed(detail: str, methods: Iterable[str]) -> HttpRefused:
    """Return a 405, which needs ``Allow`` (RFC 9110, section 15.5.6)."""
    return HttpRefused(Reason.METHOD_NOT_ALLOWED, detail, [("allow", ", ".join(methods))])
