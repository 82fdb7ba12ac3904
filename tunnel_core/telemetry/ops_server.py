"""The ``[ops]`` listener of both programs: ``/healthz``, ``/readyz``, ``/metrics``, and further pages.

1. On loopback every page is free to read, but the ``Host`` header must name this machine. Another site can
   point its own name at this listener (DNS rebinding); then the header has the other site's name.
2. Elsewhere every page but the probes requires a client certificate or a bearer token.
3. The probes answer every caller, each with one word.
4. The number of connections is bounded (``ops_places``), and so is every wait.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import h11
import trio

from tunnel_core.config.types import Ops
from tunnel_core.http.declining import Decliner, decline_http, decline_tls
from tunnel_core.http.router import READ, Route, RoutedRequest, Router, Section, WhoMay
from tunnel_core.http.server import Handler, HttpConnection, header_values, serve_http
from tunnel_core.names import join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import source_of
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import TlsStream
from tunnel_core.telemetry.counters import Counters, Snapshot
from tunnel_core.telemetry.logs import RefusalLines
from tunnel_core.telemetry.ops_places import Place, Places
from tunnel_core.text_files import NotPlainText, read_text_file, trouble_with

_log = logging.getLogger("qanat.ops")

_ENTRANCE = "ops"
_HANDSHAKE_SECONDS = 10.0
_MAX_TOKEN_BYTES = 4096
_TEXT = "text/plain; charset=utf-8"
_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a page: body, content type and HTTP status."""

    body: bytes
    content_type: str = _TEXT
    status: int = 200


Page: TypeAlias = Callable[[], Answer]
OpsCaller: TypeAlias = Callable[[h11.Request], None]
"""Check of a request's caller: raises ``Refused`` if the caller is no operator."""


def _anybody(_: OpsCaller, __: h11.Request) -> None:
    """Allow every caller, because a watchdog must not restart a healthy program."""


def _operator(caller: OpsCaller, request: h11.Request) -> None:
    caller(request)


ANYBODY: WhoMay[OpsCaller, None] = WhoMay("anybody", _anybody)
OPERATOR: WhoMay[OpsCaller, None] = WhoMay("an operator", _operator)


def page_route(path: str, who_may: WhoMay[OpsCaller, None], page: Page) -> Route[OpsCaller]:
    """Return a route that answers GET and HEAD with what ``page`` returns."""

    async def show(routed: RoutedRequest, _: None) -> None:
        await _show(routed, page())

    return Route(READ, path, who_may, show)


async def _show(routed: RoutedRequest, answer: Answer) -> None:
    headers = [("content-type", answer.content_type), ("cache-control", "no-store")]
    headers.append(("x-content-type-options", "nosniff"))
    headers.append(("content-security-policy", "frame-ancestors 'none'"))
    await routed.http.respond(answer.status, headers=headers, body=answer.body)


class OpsPages:
    """The pages of the ops listener: the probes, ``/metrics``, and further ``routes``.

    ``ready`` returns ``""``, or one word for what is missing. ``degraded`` returns whether the program works
    but needs attention. ``counters`` counts the connections that are refused because there are too many.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        ready: Callable[[], str],
        routes: Sequence[Route[OpsCaller]] = (),
        *,
        degraded: Callable[[], bool] = lambda: False,
        counters: Counters,
    ) -> None:
        self.counters = counters
        self._snapshot = snapshot
        self._ready = ready
        self._degraded = degraded
        # An answer of /healthz proves that the event loop runs.
        probes = [
            page_route("/healthz", ANYBODY, lambda: Answer(b"ok\n")),
            page_route("/readyz", ANYBODY, self._readiness),
        ]
        shown = [*routes, Route(READ, "/metrics", OPERATOR, self._show_metrics)]
        self._router = Router(
            [Section("probes", None, ANYBODY, probes), Section(_ENTRANCE, "", OPERATOR, shown)]
        )

    async def answer(self, http: HttpConnection, request: h11.Request, caller: OpsCaller) -> None:
        """Answer a request; ``caller`` checks its sender. Raises ``Refused``."""
        await self._router.answer(self._router.find(request), http, request, caller)

    async def handle(self, http: HttpConnection, request: h11.Request) -> None:
        """Answer a request that came through the tunnel, whose user the server has checked.

        This is a handler for ``serve_http``. Raises ``Refused`` if there is no such page.
        """
        await self.answer(http, request, _through_the_tunnel)

    async def _show_metrics(self, routed: RoutedRequest, _: None) -> None:
        await _show(routed, await _metrics(self._snapshot()))

    def _readiness(self) -> Answer:
        missing = self._ready()
        if missing:
            return Answer(f"{missing}\n".encode(), status=503)
        return Answer(b"degraded\n" if self._degraded() else b"ready\n")


def _through_the_tunnel(_: h11.Request) -> None:
    """Accept every caller as an operator, because the server has checked the user."""


async def _metrics(snapshot: Snapshot) -> Answer:
    tasks = trio.lowlevel.current_statistics().tasks_living
    return await trio.to_thread.run_sync(_render, snapshot, tasks)


def _render(snapshot: Snapshot, tasks: int) -> Answer:
    # A late import, because prometheus_client costs some MB and most agents have no scraper.
    from tunnel_core.telemetry import prometheus as metrics

    return Answer(metrics.exposition(snapshot, tasks=tasks), metrics.CONTENT_TYPE)


@dataclass(frozen=True, slots=True)
class OpsTls:
    """TLS of an ops listener.

    ``context`` returns the context for the next connection, because certificates are renewed. The context
    requests client certificates without requiring them. ``check_certificate`` gets the verified leaf as PEM
    and raises ``Refused`` if it is not an operator's.
    """

    context: Callable[[], ssl.SSLContext]
    check_certificate: Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class OpsAccess:
    """Access to a listener beyond loopback: operators have the token of ``bearer_file``, or a certificate.

    If neither is configured, no caller is an operator. If ``tls`` is None, the listener uses plain HTTP.
    """

    bearer_file: Path | None
    tls: OpsTls | None

    def check(self, request: h11.Request, leaf: bytes) -> None:
        """Check the caller's certificate ``leaf`` (PEM, may be empty), or its token if it has no certificate.

        Raises ``Refused``: with ``UNAUTHENTICATED`` without a valid token, or from the check of the
        certificate.
        """
        if leaf and self.tls is not None:
            self.tls.check_certificate(leaf)
        elif not self._has_token(request):
            raise Refused(Reason.UNAUTHENTICATED, self._advice())

    def _has_token(self, request: h11.Request) -> bool:
        expected = _read_token(self.bearer_file)
        given = [v[len(_BEARER) :].strip() for v in header_values(request, b"authorization") if _is_bearer(v)]
        return bool(expected) and len(given) == 1 and hmac.compare_digest(given[0], expected)

    def _advice(self) -> str:
        credentials = ["a client certificate"] if self.tls else []
        credentials += ["a bearer token"] if self.bearer_file else []
        if not credentials:
            return "beyond loopback this needs [ops] bearer_file or tls in the configuration"
        return f"beyond loopback this needs {' or '.join(credentials)}"


def _is_bearer(value: bytes) -> bool:
    return value[: len(_BEARER)].lower() == _BEARER


def _read_token(file: Path | None) -> bytes:
    """Return the token; empty if it cannot be read. Read for each request, so the file can be replaced."""
    if file is None:
        return b""
    with contextlib.suppress(OSError, NotPlainText):
        return _token_in(file)
    return b""


def _token_in(file: Path) -> bytes:
    """Return the token in ``file``. Raises ``OSError`` or ``NotPlainText``."""
    return read_text_file(file, _MAX_TOKEN_BYTES).strip().encode()


@dataclass(slots=True)
class OpsServer:
    """A running listener."""

    addresses: list[str]


async def serve_ops(
    settings: Ops,
    pages: OpsPages,
    access: OpsAccess,
    *,
    task_status: trio.TaskStatus[OpsServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``pages`` until cancelled; return at once if ``settings.listen`` is None.

    Raises ``OSError`` if the address cannot be bound. Cancellation closes the listeners and all connections.
    """
    if settings.listen is None:
        task_status.started(OpsServer([]))
        return
    _warn_of(settings.bearer_file)
    listeners = await trio.open_tcp_listeners(settings.listen.port, host=settings.listen.host, backlog=64)
    connections = _Connections(pages, access, settings.listen.is_loopback)
    task_status.started(OpsServer([_address_of(listener) for listener in listeners]))
    await trio.serve_listeners(connections.serve, listeners)


def _warn_of(file: Path | None) -> None:
    """Log a warning if the token cannot be read at the start; each request reads it again."""
    if file is None:
        return
    try:
        _token_in(file)
    except (OSError, NotPlainText) as error:
        _log.warning(
            "[ops] bearer_file cannot be used, so every token is refused: %s", trouble_with(file, error)
        )


def _address_of(listener: trio.SocketListener) -> str:
    host, port = listener.socket.getsockname()[:2]
    return join_host_port(host, port)


def _peer_of(accepted: trio.SocketStream) -> tuple[str, str]:
    """Return the client's host, and its address for the log; both empty if the client has left already."""
    try:
        host, port = accepted.socket.getpeername()[:2]
    except OSError:
        return "", ""
    host = str(host).removeprefix("::ffff:")
    return host, join_host_port(host, port)


class _Connections:
    """Admit and serve the connections of one listener."""

    def __init__(self, pages: OpsPages, access: OpsAccess, is_loopback: bool) -> None:
        self._pages = pages
        self._access = access
        self._is_loopback = is_loopback
        self._places = Places(trio.current_time)
        self._decliner = Decliner(decline_tls if access.tls else decline_http)
        self._lines = RefusalLines()

    async def serve(self, accepted: trio.SocketStream) -> None:
        host, address = _peer_of(accepted)
        plain = SocketStream.adopt(accepted)
        place = self._places.take(source_of(host))
        if place is None:
            refused = _why_full("all connections of the [ops] listener are in use; try again later")
            self._report(address, refused)
            await self._decliner.answer(plain, refused)
            return
        try:
            with trio.CancelScope() as scope:
                place.on_evicted = scope.cancel
                await self._serve_admitted(plain, place)
        except Exception:  # an error in a page must not end the program
            _log.exception("a request of the operator failed")
            plain.abort()
        finally:
            place.leave()
        if place.was_evicted:
            plain.abort()
            detail = "the connection sent no request and the [ops] listener is full; connect again"
            self._report(address, _why_full(detail))

    def _report(self, address: str, refused: Refused) -> None:
        """Log and count a connection that is closed because there are too many."""
        self._pages.counters.refused_unauthenticated(_ENTRANCE, refused.reason)
        self._lines.refused(_ENTRANCE, address, refused, now=trio.current_time())

    async def _serve_admitted(self, plain: SocketStream, place: Place) -> None:
        if self._access.tls is None:
            await serve_http(plain, self._handler(b"", place))
            return
        stream = TlsStream(plain, self._access.tls.context(), server_side=True)
        if await _shake_hands(stream):
            place.idle()
            await serve_http(stream, self._handler(stream.peer_certificate(), place))

    def _handler(self, leaf: bytes, place: Place) -> Handler:
        def check(request: h11.Request) -> None:
            self._check_operator(request, leaf, place)

        async def handle(connection: HttpConnection, request: h11.Request) -> None:
            place.busy()
            try:
                await self._pages.answer(connection, request, check)
            finally:
                place.idle()

        return handle

    def _check_operator(self, request: h11.Request, leaf: bytes, place: Place) -> None:
        """Raise ``Refused`` if the caller is no operator, or if the place is for probes only."""
        if place.is_for_probes:
            raise _why_full(
                "the [ops] listener is full and answers /healthz and /readyz only; try again later"
            )
        if self._is_loopback:
            _check_host(request)
        else:
            self._access.check(request, leaf)


def _why_full(detail: str) -> Refused:
    return Refused(Reason.TOO_MANY_CONNECTIONS, detail)


def _check_host(request: h11.Request) -> None:
    """Raise ``Refused`` if ``Host`` is neither an IP address nor a name under localhost.

    An IP address is safe: DNS cannot rebind it, so a page from that address belongs to this listener.
    """
    host = b"".join(header_values(request, b"host")).decode("latin-1").lower()
    name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
    name = name.removesuffix(".")
    if host and name != "localhost" and not name.endswith(".localhost") and not _is_address(name):
        raise Refused(
            Reason.SOURCE_NOT_ALLOWED,
            "this listener answers for localhost and for addresses only, because a page of another site can "
            "point a name here; a proxy in front of it must set `Host: localhost`",
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def _shake_hands(stream: TlsStream) -> bool:
    try:
        with trio.move_on_after(_HANDSHAKE_SECONDS):
            await stream.do_handshake()
            return True
    except trio.BrokenResourceError:
        pass  # a probe without TLS, or a scanner
    stream.abort()
    return False
