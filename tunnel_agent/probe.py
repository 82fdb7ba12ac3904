"""The way to one server, step by step, so that a failure is named by the step that fails.

gRPC tells little about why it cannot connect, so name, TCP, proxy and TLS are tried here by hand
first, each with the cure for what usually breaks it. The last step is a real attach that stops at the
server's welcome: it proves everything and takes no session away from a running agent.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import h11
import trio

from certs.x509 import Description, describe
from tunnel_agent.connect import Connector
from tunnel_agent.dial import connect_first, refused_by_errno, resolve_host
from tunnel_agent.findings import Report, Step, StepFailed, take_steps
from tunnel_agent.load import Installation
from tunnel_agent.proxy import Proxy, ProxyError
from tunnel_agent.status_page import as_milliseconds
from tunnel_core.http import HttpClientConnection
from tunnel_core.names import join_host_port, split_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.sockets import SocketStream
from tunnel_core.tls import TlsStream, reason_of

T = TypeVar("T")

# OpenSSL's x509_vfy.h.
_EXPIRED, _NOT_YET_VALID = 10, 9
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_WRONG_NAME = {62, 64}
_AGENTS_PORT = "is it the server's [agents] port, 7001 unless changed?"
_CLOCK = "set this machine's clock, for example with `timedatectl set-ntp true`"
_NEW_BUNDLE = "bring a new bundle from this server: `qanat-server issue node {node}`"
_PROXY_ANSWERS = {
    407: "give the proxy a user (http://user@host:port) and its password in proxy_password_file",
    403: "ask for CONNECT to {server} to be allowed at the proxy",
}
_ATTACH_FIXES = {
    Reason.UNAUTHENTICATED: _NEW_BUNDLE,
    Reason.WRONG_ROLE: _NEW_BUNDLE,
    Reason.WRONG_TRUST_DOMAIN: _NEW_BUNDLE,
    Reason.VERSION_MISMATCH: "update whichever of the two is older",
    Reason.TOO_MANY_SESSIONS: "raise [agents] max on the server",
    Reason.SERVER_STOPPING: "wait for the server to come back",
    Reason.CARRIER_LOST: "the server may not take this certificate: " + _NEW_BUNDLE,
}


class ServerProbe:
    """The steps towards one server. Each leaves what the next one needs."""

    def __init__(self, server: str, installation: Installation, connector: Connector) -> None:
        self._server = server
        self._host, self._port = split_host_port(server)
        self._installation = installation
        self._connector = connector
        self._patience = installation.config.session.connect_timeout_seconds
        self._proxy: Proxy | None = None
        self._addresses: Sequence[str] = ()

    async def run(self, report: Report) -> bool:
        """Takes the steps and reports each; whether all passed."""
        try:
            self._proxy = self._installation.proxy.proxy_for(self._server)
        except ProxyError as error:
            failure = StepFailed(str(error), "set proxy, or no_proxy, in the configuration")
            return await take_steps([("proxy", _failing(failure))], report)
        return await take_steps(self._steps(), report)

    def _steps(self) -> list[Step]:
        way: list[Step] = [("proxy", self._through_proxy)] if self._proxy else []
        return [
            ("dns", self._resolve),
            ("tcp", self._connect),
            *way,
            ("tls", self._shake_hands),
            ("attach", self._attach),
        ]

    # Name and TCP: to the proxy if there is one.

    @property
    def _first_hop(self) -> tuple[str, int]:
        return (self._proxy.host, self._proxy.port) if self._proxy else (self._host, self._port)

    async def _resolve(self) -> str:
        host, _ = self._first_hop
        fix = f"correct the name, or this machine's resolver (/etc/resolv.conf): `getent hosts {host}`"
        try:
            self._addresses = list(
                dict.fromkeys(await self._in_time(resolve_host(host), f"resolving {host}"))
            )
        except OSError as error:
            raise StepFailed(f"{host} cannot be resolved: {error.strerror}", fix) from None
        if self._addresses == [host]:
            return f"{host} is an address"
        return f"{host} is {', '.join(self._addresses)}"

    async def _connect(self) -> str:
        async with await self._open_tcp() as stream:
            host, port = stream.socket.getpeername()[:2]
        whose = "the proxy at " if self._proxy else ""
        return f"connected to {whose}{join_host_port(host, port)}"

    async def _open_tcp(self) -> SocketStream:
        host, port = self._first_hop
        where = join_host_port(host, port)
        try:
            return (await self._in_time(connect_first(self._addresses, port), f"dialling {where}")).stream
        except OSError as error:
            cause = refused_by_errno(self._installation.node, where, error).detail
            fix = f"let this machine reach {where} over TCP, or configure a proxy"
            if self._proxy:
                fix = f"correct the proxy, or exempt the server from it: no_proxy = [{self._host!r}]"
            raise StepFailed(cause, fix) from None

    # The proxy.

    async def _through_proxy(self) -> str:
        async with await self._open_way():
            return f"{self._proxy} opened a tunnel to {self._server}"

    async def _open_way(self) -> SocketStream:
        """A connection on which the server itself answers."""
        stream = await self._open_tcp()
        if self._proxy is None:
            return stream
        try:
            await self._in_time(self._ask_proxy(self._proxy, stream), f"asking {self._proxy}")
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _ask_proxy(self, proxy: Proxy, stream: SocketStream) -> None:
        connection = HttpClientConnection(stream, peer=f"the proxy {proxy}")
        try:
            await connection.send(self._connect_request(proxy), h11.EndOfMessage())
            answer = await connection.receive_response()
        except (Refused, trio.BrokenResourceError) as error:
            detail = error.detail if isinstance(error, Refused) else f"{proxy} closed the connection"
            raise StepFailed(detail, "is proxy really an HTTP proxy?") from None
        if answer.status_code != 200:
            reason = bytes(answer.reason).decode("ascii", "replace")
            fix = _PROXY_ANSWERS.get(answer.status_code, "ask whoever runs the proxy, or set no_proxy")
            detail = f"{proxy} answered CONNECT {self._server} with {answer.status_code} {reason}"
            raise StepFailed(detail.rstrip(), fix.format(server=self._server))

    def _connect_request(self, proxy: Proxy) -> h11.Request:
        headers = [("host", self._server)]
        if proxy.user:
            login = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
            headers.append(("proxy-authorization", f"Basic {login}"))
        return h11.Request(method="CONNECT", target=self._server, headers=headers)

    # TLS.

    async def _shake_hands(self) -> str:
        async with await self._handshake(self._context()) as tls:
            if tls.version() != "TLSv1.3":
                fix = "let TLS pass unchanged on the way, or set [tls] min_version on the server"
                raise StepFailed(f"{self._server} speaks {tls.version()}; the server asks for TLSv1.3", fix)
            if tls.alpn() != "h2":
                detail = f"{self._server} does not offer HTTP/2, which gRPC needs"
                raise StepFailed(detail, f"{_AGENTS_PORT} does something end TLS on the way?")
            described = describe(tls.peer_certificate())
            with contextlib.suppress(trio.BrokenResourceError):
                await tls.aclose()
        return f"{tls.version()}, certificate of {described.subject} until {described.ends:%Y-%m-%d}"

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self._installation.bundle.roots_pem.decode())
        context.load_cert_chain(self._installation.bundle_file)
        context.set_alpn_protocols(["h2"])
        return context

    async def _handshake(self, context: ssl.SSLContext) -> TlsStream:
        tls = TlsStream(await self._open_way(), context, server_hostname=self._host)
        try:
            await self._in_time(tls.do_handshake(), f"the TLS handshake with {self._server}")
        except BaseException as error:
            await trio.aclose_forcefully(tls)
            if isinstance(error, trio.BrokenResourceError):
                raise await self._explain(error.__cause__) from None
            raise
        return tls

    async def _explain(self, error: BaseException | None) -> StepFailed:
        """What a failed handshake means, by OpenSSL's code for it."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return await self._explain_certificate(error)
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return StepFailed(f"what answers at {self._server} does not speak TLS", _AGENTS_PORT)
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return StepFailed(f"TLS with {self._server} failed: {reason_of(error)}", _AGENTS_PORT)
        detail = f"{self._server} closed the connection during the TLS handshake"
        return StepFailed(detail, f"{_AGENTS_PORT} does a firewall block what it cannot inspect?")

    async def _explain_certificate(self, error: ssl.SSLCertVerificationError) -> StepFailed:
        try:
            shown = await self._shown_certificate()
        except StepFailed as failure:
            return failure
        return certificate_failure(self._server, error, shown)

    async def _shown_certificate(self) -> Description:
        """The certificate that is shown at the server's address, whoever issued it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(self._installation.bundle_file)
        tls = await self._handshake(context)
        shown = describe(tls.peer_certificate())
        await trio.aclose_forcefully(tls)
        return shown

    # The attach.

    async def _attach(self) -> str:
        start = trio.current_time()
        try:
            software = (await self._connector.probe(self._server)).software
            took = as_milliseconds(trio.current_time() - start)
        except Refused as refused:
            fix = _ATTACH_FIXES.get(refused.reason, "see the server's log")
            node = self._installation.node
            raise StepFailed(f"{self._server}: {refused.detail}", fix.format(node=node)) from None
        return f"welcomed as node {self._installation.node} by {software} in {took}; no session was touched"

    async def _in_time(self, doing: Awaitable[T], what: str) -> T:
        try:
            with trio.fail_after(self._patience):
                return await doing
        except trio.TooSlowError:
            fix = "does a firewall drop the packets? raise [session] connect_timeout_seconds on slow links"
            raise StepFailed(f"{what} took longer than {self._patience:g} s", fix) from None


def certificate_failure(server: str, error: ssl.SSLCertVerificationError, shown: Description) -> StepFailed:
    """What it means that OpenSSL does not verify the certificate ``shown`` at ``server``."""
    now = datetime.now(UTC)
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if error.verify_code in _UNKNOWN_ISSUER:
        detail = f"the certificate of {server} is issued by {shown.issuer}, not by your CA: TLS inspection?"
        fix = f"exempt {server} from inspection, or bring a bundle from the server that answers there"
        return StepFailed(detail, fix)
    if error.verify_code == _EXPIRED:
        detail = f"the certificate of {server} ended on {shown.ends:%Y-%m-%d}; {clock}"
        return StepFailed(detail, f"if the clock is right, renew the server's certificate; else {_CLOCK}")
    if error.verify_code == _NOT_YET_VALID:
        detail = f"the certificate of {server} begins on {shown.begins:%Y-%m-%d %H:%M} UTC; {clock}"
        return StepFailed(detail, _CLOCK)
    if error.verify_code in _WRONG_NAME:
        names = ", ".join(shown.names) or "no name"
        fix = "write one of these names in servers, or give the server a certificate with this one"
        return StepFailed(f"the certificate of {server} is for {names}", fix)
    return StepFailed(f"the certificate of {server} is not valid: {error.verify_message}", _AGENTS_PORT)


def _failing(failure: StepFailed) -> Callable[[], Awaitable[str]]:
    async def fail() -> str:
        raise failure

    return fail
