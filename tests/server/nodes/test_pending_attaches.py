"""Every entrance against false identities: real TLS, the right reason, a line of the audit.

A handshake that the agents' port refuses leaves its line as well.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

from certs.ca import Leaf, create_authority
from tests.server.entrances.test_https_revoked import CONNECT, VERSION, echo_until_reset, open_https_port
from tests.support.fakes import memory_link
from tests.support.fakes.credentials import credential_watch
from tests.support.fakes.grpc_site import Site, open_site
from tests.support.pki import authority as pki
from tests.support.pki.other_issuers import CLIENT, SERVER, signed
from tunnel_core.carrier.interface import CarrierFailed
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import AgentHandshake
from tunnel_core.session.session import Session
from tunnel_core.telemetry.counters import Counters
from tunnel_core.wire.frames import Welcome
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.nodes.attach import AttachSettings, SessionAcceptor
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.audit import AuditLine

HERE = f"spiffe://{pki.TRUST_DOMAIN}"
DAY = datetime.timedelta(days=1)
Make = Callable[[], Leaf | None]

BENT_PATHS = [
    *("/{role}/../{role}/{name}", "/{role}/./{name}", "/{role}/{name}/..", "/{role}/..", "/{role}//{name}"),
    *("/{role}/%2e%2e", "/{role}/%65dge1", "/%6eode/{name}", "/{role}/{name}%00", "/{role}/{name}\0"),
    *(
        "/{role}/{name}\0.example",
        "/{upper_role}/{name}",
        "/{role}/{upper_name}",
        "/{role}/{name}/",
        "/{role}/",
    ),
    *("/{role}", "", "/{name}", "/admin/{name}", "/{role}/{name}?x=1", "/{role}/{name}#x", "/{role}/ {name}"),
    *(
        "/{role}/{name}\n",
        "/{role}/-{name}",
        "/{role}/{name}\\..",
        "/{role}/" + "a" * 300,
        ":443/{role}/{name}",
    ),
]
"""Changes to the path of an otherwise valid identity."""


def bent(path: str, role: str, name: str) -> str:
    upper = {"upper_role": role.upper(), "upper_name": name.upper()}
    return HERE + path.format(role=role, name=name, **upper)


OTHER_FORMS = [
    (f"SPIFFE://{pki.TRUST_DOMAIN}/user/kim",),
    (f"spiffe://kim@{pki.TRUST_DOMAIN}/user/kim",),
    (f"https://{pki.TRUST_DOMAIN}/user/kim",),
    (f"spiffe:/{pki.TRUST_DOMAIN}/user/kim",),
    (f"{HERE}/user/kim", f"{HERE}/user/lee"),
    (f"{HERE}/user/kim", "https://example.com/"),
    (),
]

# The HTTPS listener.


async def ask(https_port: Any, make: Make, request: bytes) -> bytes:
    """Return the answer to a request; a refusal by TLS reads as its alert."""
    leaf = make()
    try:
        return bytes(
            await https_port.ask(await https_port.enter(leaf, has_certificate=leaf is not None), request)
        )
    except trio.BrokenResourceError as error:
        return str(error).encode()


HTTPS = [
    (lambda: pki.node_leaf("edge1"), "wrong_role", b"HTTP/1.1 403 the certificate is the node edge1's"),
    (
        lambda: signed(f"{HERE}/server/main"),
        "wrong_role",
        b"HTTP/1.1 403 the certificate is the server main's",
    ),
    (pki.server_leaf, "wrong_role", b"unsupported certificate"),
    (lambda: signed(f"{HERE}/user/kim", usages=()), "wrong_role", b"HTTP/1.1 403 "),
    (lambda: signed(f"{HERE}/user/kim", usages=[SERVER]), "wrong_role", b"unsupported certificate"),
    (lambda: signed("spiffe://elsewhere.example/user/kim"), "wrong_trust_domain", b"HTTP/1.1 403 "),
    (lambda: pki.user_leaf("kim", "other.internal"), "unauthenticated", b"unknown ca"),
    (lambda: signed(f"{HERE}/user/kim", begins=-DAY), "certificate_expired", b"certificate expired"),
    (lambda: signed(f"{HERE}/user/kim", begins=DAY), "unauthenticated", b"bad certificate"),
    (lambda: None, "unauthenticated", b"HTTP/1.1 401 no client certificate was shown"),
    (lambda: signed(common_name="user kim", names=["kim"]), "unauthenticated", b"HTTP/1.1 401 "),
]


@pytest.mark.parametrize("request_", [CONNECT, VERSION], ids=["connect", "api"])
@pytest.mark.parametrize(("make", "word", "says"), HTTPS, ids=[str(n) for n in range(len(HTTPS))])
async def test_a_caller_that_is_no_user_opens_nothing(
    make: Make, word: str, says: bytes, request_: bytes, tmp_path: Path
) -> None:
    async with open_https_port(tmp_path) as https_port:
        session = https_port.edge.attach("edge1", echo_until_reset)
        answer = await ask(https_port, make, request_)
        assert says in answer
        while not https_port.audited:
            await trio.lowlevel.checkpoint()
        [line] = https_port.audited
        assert (line.kind.value, line.reason, line.source != "") == ("refused", word, True)
        assert not session.streams


@pytest.mark.parametrize(
    "uris", [*((bent(path, "user", "kim"),) for path in BENT_PATHS), *OTHER_FORMS], ids=repr
)
async def test_a_users_name_is_taken_as_it_must_be_or_not_at_all(
    uris: tuple[str, ...], tmp_path: Path
) -> None:
    async with open_https_port(tmp_path) as https_port:
        session = https_port.edge.attach("edge1", echo_until_reset)
        answer = await ask(https_port, lambda: signed(*uris, common_name="kim"), CONNECT)
        assert answer.startswith(b"HTTP/1.1 401 the certificate names no identity: ")
        assert [line.reason for line in https_port.audited] == ["unauthenticated"]
        assert not session.streams


HEADERS = (
    b"X-Forwarded-Client-Cert: URI=spiffe://test.internal/user/kim\r\nX-SSL-Client-S-DN: CN=kim\r\n"
    b"X-Remote-User: kim\r\nX-Forwarded-User: kim\r\nAuthorization: Basic a2ltOmtpbQ==\r\n"
    b"X-Qanat-User: kim\r\nForwarded: for=127.0.0.1\r\nCookie: user=kim\r\n\r\n"
)


@pytest.mark.parametrize(
    ("make", "status"),
    [(lambda: None, b"401"), (lambda: pki.node_leaf("edge1"), b"403")],
    ids=["nobody", "node"],
)
async def test_headers_do_not_authenticate(make: Make, status: bytes, tmp_path: Path) -> None:
    async with open_https_port(tmp_path) as https_port:
        session = https_port.edge.attach("edge1", echo_until_reset)
        for request in (CONNECT, VERSION):
            answer = await ask(https_port, make, request.removesuffix(b"\r\n") + HEADERS)
            assert answer.startswith(b"HTTP/1.1 " + status)
        assert not session.streams


async def test_headers_change_nobodys_name(tmp_path: Path) -> None:
    async with open_https_port(tmp_path) as https_port:
        session = https_port.edge.attach("edge1", echo_until_reset)
        request = CONNECT.removesuffix(b"\r\n") + HEADERS.replace(b"kim", b"root")
        assert (await ask(https_port, lambda: pki.user_leaf("kim"), request)).startswith(b"HTTP/1.1 200 ")
        assert session.streams[0].user == "kim"


ISSUED_ELSEWHERE = [
    {"usages": [CLIENT, SERVER], "names": ["workload.example", "10.0.0.7"]},  # SPIRE
    {"usages": [SERVER, CLIENT], "common_name": "root", "names": ["kim@example.com"]},  # Vault
    {"names": ["edge2", "spiffe.example"], "common_name": "edge2"},  # cert-manager
]


@pytest.mark.parametrize("more", ISSUED_ELSEWHERE, ids=["spire", "vault", "cert-manager"])
async def test_certificates_of_other_issuers_are_good_if_the_name_is(
    more: dict[str, Any], tmp_path: Path
) -> None:
    async with open_https_port(tmp_path) as https_port:
        session = https_port.edge.attach("edge1", echo_until_reset)
        answer = await ask(https_port, lambda: signed(f"{HERE}/user/kim", **more), CONNECT)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert session.streams[0].user == "kim"


# The agents' listener.


@dataclass
class RealAgentsPort:
    site: Site
    nodes: Nodes
    nursery: trio.Nursery
    limits: Limits = field(default_factory=lambda: Limits(grace_seconds=60))
    audited: list[AuditLine] = field(default_factory=list)

    def __post_init__(self) -> None:
        refusals = Refusals(self.audited.append, trio.current_time)
        settings = AttachSettings(pki.TRUST_DOMAIN, 10, self.limits)
        pool = CreditPool(self.limits.credit_pool)
        self.acceptor = SessionAcceptor(
            settings,
            self.nodes,
            pool,
            self.nursery,
            Counters(),
            credential_watch=credential_watch(),
            refusals=refusals,
            trust_bundle=bytes,
        )
        self.site.on_carrier = self.acceptor.take

    async def attempt(self, leaf: Leaf, **changes: Any) -> Attachment:
        """Raises ``CarrierFailed`` or ``Refused``."""
        carrier = await self.site.dial(leaf, roots_pem=pki.authority().roots_pem)
        attempt = Attachment(carrier, AgentHandshake(memory_link.hello(self.limits)._replace(**changes)))
        await attempt.settle(5)
        return attempt

    async def attach(self, leaf: Leaf) -> Attachment:
        attempt = await self.attempt(leaf)
        received_hello, pool = attempt.handshake.hello, CreditPool(self.limits.credit_pool)
        assert received_hello is not None
        session = Session(
            received_hello, attempt.welcome, opener=False, node="any", limits=self.limits, pool=pool
        )
        attempt.use(session)
        self.nursery.start_soon(session.run)
        while not self.nodes.attached():
            await trio.lowlevel.checkpoint()
        return attempt

    async def refusal(self, leaf: Leaf, **changes: Any) -> Refused:
        with pytest.raises(Refused) as caught:
            await self.attempt(leaf, **changes)
        while not self.audited:
            await trio.lowlevel.checkpoint()
        return caught.value


@asynccontextmanager
async def open_agents_port() -> AsyncIterator[RealAgentsPort]:
    with trio.fail_after(20):
        async with open_site() as site, trio.open_nursery() as nursery:
            nodes = Nodes(trio.current_time, lambda: datetime.datetime.now(datetime.UTC), lambda name: False)
            yield RealAgentsPort(site, nodes, nursery)
            nursery.cancel_scope.cancel()


AGENTS = [
    (lambda: pki.user_leaf("kim"), Reason.WRONG_ROLE, "kim"),
    (lambda: signed(f"{HERE}/server/main"), Reason.WRONG_ROLE, ""),
    (lambda: signed(f"{HERE}/node/edge1", usages=()), Reason.WRONG_ROLE, "edge1"),
    (lambda: signed("spiffe://elsewhere.example/node/edge1"), Reason.WRONG_TRUST_DOMAIN, "edge1"),
    (lambda: signed(common_name="edge1", names=["edge1"]), Reason.UNAUTHENTICATED, ""),
    (lambda: signed(f"{HERE}/node/edge1", f"{HERE}/node/edge2"), Reason.UNAUTHENTICATED, ""),
]


@pytest.mark.parametrize(("make", "reason", "name"), AGENTS, ids=[str(n) for n in range(len(AGENTS))])
async def test_a_caller_that_is_no_node_attaches_nothing(
    make: Callable[[], Leaf], reason: Reason, name: str
) -> None:
    async with open_agents_port() as agents_port:
        assert (await agents_port.refusal(make())).reason is reason
        [line] = agents_port.audited
        assert (line.reason, line.node or line.user) == (reason.word, name)
        assert line.detail.startswith("agents: ") and line.source.startswith("127.0.0.1:")
        assert agents_port.nodes.all() == []


async def test_a_nodes_name_is_taken_as_it_must_be_or_not_at_all() -> None:
    async with open_agents_port() as agents_port:
        for path in BENT_PATHS:
            refusal = await agents_port.refusal(signed(bent(path, "node", "edge1"), common_name="edge1"))
            assert refusal.reason is Reason.UNAUTHENTICATED, path
        assert len(agents_port.audited) == 1  # a flood: the rest is counted
        assert agents_port.nodes.all() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: pki.node_leaf("edge1", "other.internal"),
        lambda: signed(f"{HERE}/node/edge1", authority=create_authority(pki.TRUST_DOMAIN).authority),
        lambda: pki.expired_leaf(Role.NODE, "edge1"),
        lambda: signed(f"{HERE}/node/edge1", begins=DAY),
        lambda: signed(f"{HERE}/node/edge1", usages=[SERVER]),
    ],
    ids=["other authority", "same name", "expired", "not yet", "server use"],
)
async def test_a_caller_that_the_handshake_refuses_sends_no_hello(make: Callable[[], Leaf]) -> None:
    async with open_agents_port() as agents_port:
        with pytest.raises(CarrierFailed):
            await agents_port.attempt(make())
        assert len(agents_port.acceptor._pending) == 0


@pytest.mark.parametrize("more", ISSUED_ELSEWHERE, ids=["spire", "vault", "cert-manager"])
async def test_nodes_of_other_issuers_attach_if_the_name_is_right(more: dict[str, Any]) -> None:
    async with open_agents_port() as agents_port:
        await agents_port.attach(signed(f"{HERE}/node/edge1", **more))
        assert [node.name for node, _ in agents_port.nodes.attached()] == ["edge1"]


async def test_a_stolen_session_is_worth_nothing() -> None:
    async with open_agents_port() as agents_port:
        welcome: Welcome = (await agents_port.attach(pki.node_leaf("edge1"))).welcome
        stolen = {"session": welcome.session, "attempt": 7}
        for leaf, secret in (
            (pki.node_leaf("edge1"), b"x" * 32),  # the id alone
            (pki.node_leaf("edge2"), welcome.secret),  # all of it, by another node
            (pki.node_leaf("edge2"), b""),
        ):
            refusal = await agents_port.refusal(leaf, **stolen, secret=secret)
            assert refusal.reason is Reason.SESSION_MISMATCH
        session = agents_port.nodes.session_of("edge1")
        assert session.attached and session.welcome.session == welcome.session
        assert {(line.node, line.reason) for line in agents_port.audited} == {("edge1", "session_mismatch")}
        with pytest.raises(Refused) as caught:
            await agents_port.attempt(pki.user_leaf("kim"), **stolen, secret=welcome.secret)
        assert caught.value.reason is Reason.WRONG_ROLE
