"""The logins of today: any program of this machine, and users' certificates over TLS."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from certs.ca import Leaf
from certs.x509 import facts_of
from tests.server.pki.test_web_certificates import leaf, open_certificates, write_pair
from tests.support.fakes.edge import TRUST_DOMAIN, Edge, answer_with, open_edge, receive_all, receive_until
from tests.support.pki import authority as pki
from tunnel_core.config.types import ServiceName
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import TlsStream
from tunnel_server.access.routing import WebHost
from tunnel_server.auth.revocation_list import Revocation, RevocationKind, RevocationList
from tunnel_server.auth.users import User
from tunnel_server.entrances.web.entrance import WebTls
from tunnel_server.entrances.web.login import (
    BrowserConnection,
    CertificateLogin,
    Login,
    LoginAnswer,
    LoopbackLogin,
    ProxyLogin,
)
from tunnel_server.entrances.web.proxies import TrustedProxies
from tunnel_server.listeners.listener import Listener
from tunnel_server.listeners.tls import over_tls
from tunnel_server.listeners.user_connections import UserConnections
from tunnel_server.pki.web_certificates import WebCertificates
from tunnel_server.reverse_proxy.messages import AnswerHead, BrowserRequest
from tunnel_server.web_config import WebLogin, WebService

DOMAIN = "edge.example"
HOST = f"red--edge1.{DOMAIN}"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
REQUEST = BrowserRequest(
    method=b"GET", scheme=b"http", authority=HOST.encode(), target=b"/", headers=[], source="127.0.0.1"
)


async def serve_tls(
    edge: Edge, certificates: WebCertificates, *, users: int = 10, **changes: object
) -> Listener:
    """Listen with these certificates; without changes a user's certificate is the login."""
    tls = WebTls(contexts=certificates.contexts, users=UserConnections(users, users))
    web = edge.web(DOMAIN, tls=tls, **{"login": CertificateLogin(edge.watch), **changes})
    return await edge.listen("web", over_tls("web", certificates.contexts, 5.0, web.serve, edge.records))


async def open_tls(
    edge: Edge,
    listener: Listener,
    folder: Path,
    host: str = HOST,
    *,
    client: Leaf | None = None,
    alpn: Sequence[str] = ("http/1.1",),
) -> TlsStream:
    """Return a connection of a browser that trusts the authority of the tests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pki.authority().roots_pem.decode())
    context.set_alpn_protocols(list(alpn))
    if client is not None:
        (folder / "client.pem").write_bytes(client.credential.key_pem + client.chain_pem)
        context.load_cert_chain(folder / "client.pem")
    stream = TlsStream(await edge.dial(listener), context, server_hostname=host)
    await stream.do_handshake()
    return stream


def get(host: str = HOST) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def certificates_of(folder: Path, login: WebLogin = WebLogin.CERTIFICATE) -> WebCertificates:
    return open_certificates(folder, write_pair(folder, "web", leaf(f"*.{DOMAIN}", DOMAIN)), login=login)


async def test_a_users_certificate_opens_a_service(tmp_path: Path) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(OK))
        listener = await serve_tls(edge, certificates_of(tmp_path))
        stream = await open_tls(edge, listener, tmp_path, client=pki.user_leaf("anna"))
        await stream.send_all(get())
        assert (await receive_until(stream, b"hi")).startswith(b"HTTP/1.1 200 ")
        assert session.streams[0].user == "anna"


@pytest.mark.parametrize(
    ("client", "status", "says"),
    [
        (None, b"401", b"no user's certificate was shown"),
        (pki.node_leaf("edge7"), b"403", b"only a user's may open streams"),
    ],
)
async def test_without_a_users_certificate_nothing_opens(
    tmp_path: Path, client: Leaf | None, status: bytes, says: bytes
) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(OK))
        listener = await serve_tls(edge, certificates_of(tmp_path))
        for host in (HOST, DOMAIN):  # the list of nodes is for users too
            stream = await open_tls(edge, listener, tmp_path, host, client=client)
            await stream.send_all(get(host))
            answer = await receive_all(stream)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert says in answer
        assert not session.streams
        assert edge.audit[-1].kind.value == "refused"


async def test_a_revoked_user_is_refused_on_an_open_connection(tmp_path: Path) -> None:
    revoked = RevocationList()
    async with open_edge(revoked) as edge:
        edge.attach("edge1", answer_with(OK))
        listener = await serve_tls(edge, certificates_of(tmp_path))
        anna = pki.user_leaf("anna")
        stream = await open_tls(edge, listener, tmp_path, client=anna)
        await stream.send_all(get())
        await receive_until(stream, b"hi")
        facts = facts_of(anna.credential.certificate_pem)
        revoked.put(Revocation(1, RevocationKind.SERIAL, facts.serial, 0, "test", ""))
        await stream.send_all(get())
        assert (await receive_all(stream)).startswith(b"HTTP/1.1 403 ")


async def test_one_user_has_a_bounded_number_of_connections(tmp_path: Path) -> None:
    async with open_edge() as edge:  # beyond the bound a user needs two free places for each connection
        edge.attach("edge1", answer_with(OK))
        listener = await serve_tls(edge, certificates_of(tmp_path), users=0)
        other = await open_tls(edge, listener, tmp_path, client=pki.user_leaf("anna"))
        await other.send_all(get())
        answer = await receive_until(other, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 429 ")


async def test_a_request_for_a_host_of_another_certificate_is_misdirected(tmp_path: Path) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(OK))
        certificates = open_certificates(
            tmp_path,
            write_pair(tmp_path, "wild", leaf(f"*.{DOMAIN}")),
            write_pair(tmp_path, "main", leaf(DOMAIN)),
        )
        listener = await serve_tls(edge, certificates, login=LoopbackLogin(TRUST_DOMAIN))
        stream = await open_tls(edge, listener, tmp_path, DOMAIN)
        await stream.send_all(get(HOST))
        assert (await receive_all(stream)).startswith(b"HTTP/1.1 421 ")
        assert not session.streams
        other = await open_tls(edge, listener, tmp_path, f"blue--edge1.{DOMAIN}")
        await other.send_all(get(HOST))  # the same certificate, so a browser may use the connection
        assert (await receive_until(other, b"hi")).startswith(b"HTTP/1.1 200 ")


async def test_over_tls_the_target_learns_the_scheme_and_links_have_it(tmp_path: Path) -> None:
    async with open_edge() as edge:
        seen: list[bytes] = []
        edge.attach("edge1", answer_with(OK, seen=seen))
        certificates = certificates_of(tmp_path, WebLogin.NONE)
        listener = await serve_tls(
            edge,
            certificates,
            login=LoopbackLogin(TRUST_DOMAIN),
            services=[WebService(name=ServiceName("red"), forwarded=True)],
        )
        stream = await open_tls(edge, listener, tmp_path)
        await stream.send_all(get())
        await receive_until(stream, b"hi")
        assert b"X-Forwarded-Proto: https\r\n" in seen[0]


async def test_plain_http_to_the_tls_port_is_no_request(tmp_path: Path) -> None:
    async with open_edge() as edge:
        listener = await serve_tls(edge, certificates_of(tmp_path))
        plain = await edge.dial(listener)
        await plain.send_all(get())
        assert not (await receive_all(plain)).startswith(b"HTTP/")


async def test_the_answer_of_a_login_is_sent_and_nothing_opens() -> None:
    class Redirect:
        async def user_of(
            self, request: BrowserRequest, host: WebHost, connection: BrowserConnection
        ) -> LoginAnswer:
            assert host == WebHost("red", "edge1")
            assert connection.host == "127.0.0.1"
            return LoginAnswer(AnswerHead(302, [(b"Location", b"https://login/"), (b"Content-Length", b"0")]))

    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(OK))
        browser = await edge.dial(await edge.listen("web", edge.web(DOMAIN, login=Redirect()).serve))
        for _ in range(2):
            await browser.send_all(get())
            answer = await receive_until(browser, b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 302 ")
            assert b"Location: https://login/\r\n" in answer
        assert not session.streams


@pytest.mark.parametrize("address", ["192.0.2.1:99", "[2001:db8::1]:99", "10.0.0.1:1"])
async def test_without_a_login_other_machines_are_refused(address: str) -> None:
    login = LoopbackLogin(TRUST_DOMAIN)
    for local in ("127.0.0.1:1", "[::1]:1"):
        user = await login.user_of(REQUEST, WebHost(), BrowserConnection(local, False, None))
        assert not isinstance(user, LoginAnswer)
        assert (user.name, user.role) == ("loopback", Role.USER)
    with pytest.raises(Refused) as caught:
        await login.user_of(REQUEST, WebHost(), BrowserConnection(address, False, None))
    assert caught.value.reason is Reason.SOURCE_NOT_ALLOWED
    await trio.lowlevel.checkpoint()


async def outcome(login: Login, request: BrowserRequest, address: str = "127.0.0.1:1") -> str:
    """Return the user's name, or the sentence of the refusal."""
    await trio.lowlevel.checkpoint()
    try:
        user = await login.user_of(request, WebHost(), BrowserConnection(address, False, None))
    except Refused as refused:
        assert refused.reason is Reason.SOURCE_NOT_ALLOWED
        return refused.detail
    assert isinstance(user, User)
    return user.name


FORWARDED = [(b"X-Forwarded-For", b"192.0.2.1"), (b"forwarded", b"for=192.0.2.1"), (b"Via", b"1.1 proxy")]


@pytest.mark.parametrize("header", FORWARDED)
async def test_what_an_unlisted_proxy_of_this_machine_passes_on_is_refused(
    header: tuple[bytes, bytes],
) -> None:
    request = replace(REQUEST, headers=[header])
    for login in (LoopbackLogin(TRUST_DOMAIN), ProxyLogin(TRUST_DOMAIN)):
        assert "a proxy passed this request on" in await outcome(login, request)
        assert await outcome(login, REQUEST) == "loopback"


async def test_behind_a_trusted_proxy_the_source_is_the_machine_that_counts() -> None:
    none, proxy = LoopbackLogin(TRUST_DOMAIN), ProxyLogin(TRUST_DOMAIN)
    far = replace(REQUEST, headers=FORWARDED[:1], source="192.0.2.1", is_proxied=True)
    assert "serves this machine only" in await outcome(none, far)
    assert await outcome(proxy, far) == "loopback"
    local = replace(REQUEST, headers=[(b"X-Forwarded-For", b"::1"), FORWARDED[2]], is_proxied=True)
    assert await outcome(none, local) == "loopback"
    # The proxy did not say for whom it asks in the header that is believed.
    for headers in (FORWARDED[1:], [(b"X-Forwarded-For", b", ")]):
        assert "a proxy passed this request on" in await outcome(none, replace(local, headers=headers))


async def test_a_proxy_login_refuses_other_machines() -> None:
    far = replace(REQUEST, source="192.0.2.1")
    assert "serves this machine only" in await outcome(ProxyLogin(TRUST_DOMAIN), far, "192.0.2.1:9")


async def test_the_internet_behind_a_proxy_of_this_machine_opens_nothing() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", answer_with(OK))
        trusted = TrustedProxies([ipaddress.ip_network("127.0.0.0/8")])
        for proxies in (None, trusted):
            web = edge.web(DOMAIN, proxies=proxies)
            browser = await edge.dial(await edge.listen("web", web.serve))
            await browser.send_all(get()[:-2] + b"X-Forwarded-For: 127.0.0.1, 192.0.2.1\r\n\r\n")
            assert (await receive_all(browser)).startswith(b"HTTP/1.1 403 ")
        assert not session.streams
