"""Every HTTP listener of both programs in one process, and the answer of each to a request."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from certs.x509 import IdentityError
from tests.server.commands.test_init import run
from tests.support.fakes.edge import TRUST_DOMAIN, Edge, describe_server, echo, now, open_edge
from tests.support.fakes.opened_store import opened
from tests.support.net.dialling import dial
from tests.support.pki import authority as pki
from tunnel_core.config.loader import load
from tunnel_core.config.types import ListenAddress, Ops
from tunnel_core.http.router import Section
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.ops_server import OPERATOR, Answer, OpsAccess, OpsPages, page_route, serve_ops
from tunnel_server.admin.actions import READS, WRITES, Actions
from tunnel_server.api.admin import AdminEntrance
from tunnel_server.api.server_facts import ServerFacts
from tunnel_server.auth.callers import Caller
from tunnel_server.auth.identify import identify_by_file_mode
from tunnel_server.auth.users import User
from tunnel_server.config import ServerConfig
from tunnel_server.entrances.est import EstEntrance, PublicAddresses
from tunnel_server.entrances.https import HttpsEntrance
from tunnel_server.listeners.listener import AcceptedConnection
from tunnel_server.pki.enrolment.enrolment import Enrolment, EnrolmentSettings
from tunnel_server.pki.enrolment.signer import Signer
from tunnel_server.store.settings import settings_of

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
NOTHING = ("/", "/nothing", "/api", "/api/", "/api/v2/nodes", "/API/v1/nodes", "//api/v1/nodes", "*")
API = (
    *("/api/v1/nodes", "/api/v1/nodes?brief=1", "/api/v1/nodes?limit=no", "/api/v1/nodes?x=y"),
    *("/api/v1/sessions", "/api/v1/streams", "/api/v1/version", "/api/v1/version?x=y", "/api/v1/status"),
    *("/api/v1/events", "/api/v1/events?after=no", "/api/v1/events?x=y"),
    *("/api/v1/policy?user=kim&verb=admin", "/api/v1/policy?user=kim&verb=connect", "/api/v1/policy"),
    *("/api/v1/nodes/edge1", "/api/v1/nodes/%65dge1", "/api/v1/nodes/edge9", "/api/v1/nodes/edge1/"),
    *("/api/v1/nodes/", "/api/v1/version/", "/api/v1/%76ersion", "/api/v1/nothing"),
    "http://x/api/v1/version",
)
_EST = "/.well-known/est/"
EST = (
    *("/api/v1/join", "/api/v1/join?x=y", "/api/v1/join/", f"{_EST}cacerts", f"{_EST}cacerts?x=y"),
    *(f"{_EST}csrattrs", f"{_EST}simpleenroll", f"{_EST}simplereenroll"),
    *(f"{_EST}cacerts/", f"{_EST}%63acerts", f"{_EST}nothing", _EST, "/.well-known/est"),
)
_ADMIN = "/api/v1/admin/"
ADMIN = (
    *(_ADMIN + name for name in (*READS, *WRITES)),
    *(f"{_ADMIN}tokens?x=y", f"{_ADMIN}tokens/", f"{_ADMIN}%74okens", f"{_ADMIN}nothing", _ADMIN),
    "/api/v1/admin",
)
OPS = (
    *("/", "/?x=y", "/status.json", "/healthz", "/healthz?x=y", "/readyz", "/metrics"),
    *("/healthz/", "/%68ealthz", "/nothing", "//healthz", "http://localhost/healthz", "*"),
)
CONNECT = ("edge1:80", "edge9:80")

Ask = Callable[[str, str], Awaitable[str]]
"""A function that returns the answer to a method and a target, in one line."""


def listener_paths() -> dict[str, tuple[str, ...]]:
    """Return the paths to request, by listener and caller."""
    everywhere = (*NOTHING, *API, *EST, *ADMIN)
    fewer = (*NOTHING, "/api/v1/version", "/api/v1/nodes/edge1", *EST, f"{_ADMIN}tokens")
    return {
        "https, user": everywhere,
        "https, node": fewer,
        "https, nobody": fewer,
        "https, user, no connect": (*NOTHING, "/api/v1/version"),
        "admin socket": everywhere,
        "connect socket, user": (*NOTHING, "/api/v1/version", "/api/v1/join", f"{_ADMIN}tokens"),
        "connect socket, nobody": (*NOTHING, "/api/v1/version", "/api/v1/join", f"{_ADMIN}tokens"),
        "ops, loopback": OPS,
        "ops, loopback, rebound": OPS,
        "ops, beyond, nobody": OPS,
        "ops, beyond, token": OPS,
    }


@asynccontextmanager
async def open_listeners(folder: Path) -> AsyncIterator[dict[str, Ask]]:
    """Yield all listeners by the names that ``listener_paths`` uses."""
    async with _open_server(folder) as fronts, _open_ops(folder) as ops:
        yield {**fronts, **ops}


def _refuse(reason: Reason) -> Callable[[AcceptedConnection], User]:
    def identify(_: AcceptedConnection) -> User:
        if reason is Reason.WRONG_ROLE:
            raise IdentityError(reason, "a node", SpiffeId(TRUST_DOMAIN, Role.NODE, "edge1"), "1f")
        raise Refused(reason)

    return identify


def kim(_: AcceptedConnection) -> User:
    """Identify every caller as the user kim."""
    return User("kim", Role.USER, TRUST_DOMAIN)


@asynccontextmanager
async def open_sections(folder: Path) -> AsyncIterator[tuple[Edge, list[Section[Caller]]]]:
    """Yield the sections of the server's listeners: EST, the API, CONNECT and administration."""
    assert run("init", "--name", "tunnel.example.com", "--data-dir", folder / "d").exit_code == 0
    config = load(folder / "d" / "server.toml", ServerConfig)
    async with opened(folder, now, settings_of(config)) as store, open_edge(store.revoked) as edge:  # type: ignore[arg-type]
        edge.attach("edge1", echo)
        signer = Signer(pki.authority(), pki.server_leaf().roots_pem)
        settings = EnrolmentSettings(pki.TRUST_DOMAIN, 3600.0, 1800.0, renews_only_own=False)
        enrolment = Enrolment(settings, lambda: signer, store, edge.watch, trio.current_time)
        est = EstEntrance(
            enrolment, lambda: PublicAddresses(TRUST_DOMAIN, ("localhost:1",), ("localhost:2",)), now
        )
        facts = ServerFacts(now(), dict, describe_server, edge.watch.live_certificates, store)
        without_server = Actions.without_server(config, store)
        admin = AdminEntrance(replace(without_server, nodes=edge.nodes))
        yield edge, [est.section(), edge.api(facts), edge.connect(), admin.section()]


@asynccontextmanager
async def _open_server(folder: Path) -> AsyncIterator[dict[str, Ask]]:
    async with open_sections(folder) as (edge, (est, api, connect, admin)):
        fronts = {
            "https, user": edge.https_entrance(kim, est, api, connect),
            "https, node": edge.https_entrance(_refuse(Reason.WRONG_ROLE), est, api, connect),
            "https, nobody": edge.https_entrance(_refuse(Reason.UNAUTHENTICATED), est, api, connect),
            "https, user, no connect": edge.https_entrance(kim, est, api),
            "admin socket": edge.https_entrance(identify_by_file_mode(TRUST_DOMAIN), api, admin),
            "connect socket, user": edge.https_entrance(kim, connect),
            "connect socket, nobody": edge.https_entrance(_refuse(Reason.UNAUTHENTICATED), connect),
        }
        yield {name: await asking(edge, one) for name, one in fronts.items()}


async def asking(edge: Edge, https_entrance: HttpsEntrance) -> Ask:
    """Serve ``front`` on a port, and return a function that sends requests to it."""
    listener = await edge.listen("https", https_entrance.serve)
    return lambda method, target: _ask(listener.addresses[0], method, target, "x")


@asynccontextmanager
async def _open_ops(folder: Path) -> AsyncIterator[dict[str, Ask]]:
    counters, token = Counters(), folder / "token"
    token.write_text("s3cret\n")
    routes = [
        page_route("/", OPERATOR, lambda: Answer(b"<p>", "text/html; charset=utf-8")),
        page_route("/status.json", OPERATOR, lambda: Answer(b"{}", "application/json")),
    ]
    pages = OpsPages(lambda: counters.snapshot(sessions=1), lambda: "", routes, counters=counters)
    access = OpsAccess(token, None)
    async with trio.open_nursery() as nursery:
        here = await nursery.start(serve_ops, Ops(listen=ListenAddress("127.0.0.1", 0)), pages, access)
        beyond = Ops(listen=ListenAddress("0.0.0.0", 0), bearer_file=token)
        there = await nursery.start(serve_ops, beyond, pages, access)
        near, far = (f"127.0.0.1:{one.addresses[0].rpartition(':')[2]}" for one in (here, there))
        bearer = "authorization: Bearer s3cret\r\n"
        yield {
            "ops, loopback": lambda method, target: _ask(near, method, target, "localhost"),
            "ops, loopback, rebound": lambda method, target: _ask(near, method, target, "evil.example"),
            "ops, beyond, nobody": lambda method, target: _ask(far, method, target, "x"),
            "ops, beyond, token": lambda method, target: _ask(far, method, target, "x", bearer),
        }
        nursery.cancel_scope.cancel()


async def _ask(address: str, method: str, target: str, host: str, headers: str = "") -> str:
    """Return status, content type, the reason's word, and ``Allow``, each only if the answer has it."""
    body = "{}" if method in ("POST", "PUT") else ""
    head = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n{headers}connection: close\r\n"
    head += f"content-length: {len(body)}\r\n" if body else ""
    answer = b""
    async with await dial("127.0.0.1", int(address.rpartition(":")[2])) as stream:
        await stream.send_all(f"{head}\r\n{body}".encode())
        with contextlib.suppress(trio.BrokenResourceError):
            while piece := await stream.receive_some():
                answer += piece
                if method == "CONNECT" and answer.startswith(b"HTTP/1.1 200 "):
                    break
    return _in_a_line(method, answer)


def _in_a_line(method: str, answer: bytes) -> str:
    top, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert fields.get("content-length", "0") != "0" or method == "CONNECT", answer
    assert (method == "HEAD") == (body == b"") or method == "CONNECT", answer
    word = fields.get("qanat-reason", "")
    assert body.decode(errors="replace").partition(":")[0] == word or not body or not word, answer
    kind = fields.get("content-type", "").partition(";")[0].rpartition("/")[2]
    found = [status.split()[1], kind, word, fields.get("allow", "").replace(", ", ",")]
    return ":".join(part for part in found if part)
