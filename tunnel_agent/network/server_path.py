"""Connect to one of a server's ports step by step: name, TCP, proxy, TLS.

A step that fails raises ``CheckFailed`` with a sentence and the fix for the usual cause.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import h11
import trio

from certs.x509 import Description, describe
from tunnel_agent.checks import CheckFailed, CheckStep
from tunnel_agent.network.happy_eyeballs import Connected, connect_first, refused_by_errno
from tunnel_agent.network.proxy import Proxy, ProxyError
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.network.resolver import Resolve, resolve_server
from tunnel_core.http.server import HttpClientConnection
from tunnel_core.humanize import as_minute
from tunnel_core.names import join_host_port, split_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import TlsStream
from tunnel_core.streams.tls_errors import is_end_of_file, reason_of

T = TypeVar("T")

# OpenSSL's x509_vfy.h.
_EXPIRED, _NOT_YET_VALID = 10, 9
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_WRONG_NAME = {62, 64}
_FIREWALL = "does a firewall drop the packets? raise [session] connect_timeout_seconds on slow links"
SET_CLOCK = "set this machine's clock, for example with `timedatectl set-ntp true`"
_PROXY_ANSWERS = {
    407: "give the proxy a user (http://user@host:port) and its password in proxy_password_file",
    403: "ask for CONNECT to {server} to be allowed at the proxy",
}


class ConnectionLost(CheckFailed):
    """Raised when the other end closed the connection without a reason, so that a retry may succeed."""


@dataclass(frozen=True, slots=True)
class Port:
    """One of a server's ports. ``server`` is ``host:port``.

    ``hint`` is the fix if another program answers at the port. ``name_fix`` and ``issuer_fix`` are the fixes
    for a certificate with other names, or from another issuer.
    """

    server: str
    hint: str
    name_fix: str
    issuer_fix: str


def agents_port(server: str) -> Port:
    """Return the port of ``server`` for agents."""
    fix = "write one of these names in servers, or give the server a certificate with this one"
    issuer_fix = f"exempt {server} from inspection, or bring a bundle from the server that answers there"
    return Port(server, "is it the server's [agents] port, 7001 unless changed?", fix, issuer_fix)


def https_port(server: str) -> Port:
    """Return the https port of ``server``."""
    fix = "use one of these names; the server gets its names by `qanat-server init --name`"
    issuer_fix = f"exempt {server} from inspection, or use a token or bundle of the server that answers there"
    return Port(server, "is it the server's [https] port, 7002 unless changed?", fix, issuer_fix)


class ServerPath:
    """Steps to a server's port, each of which needs the previous one.

    ``client_file`` has the node's key and chain; None without one.

    All steps raise ``CheckFailed``. A step that fails or is cancelled leaves no connection behind.
    """

    def __init__(
        self,
        port: Port,
        node: str,
        proxies: ProxyChoice,
        response_timeout_seconds: float,
        client_file: Path | None,
        resolve: Resolve = resolve_server,
    ) -> None:
        self.server = port.server
        self.host, self.port = split_host_port(port.server)
        self.hint = port.hint
        self._port = port
        self._node = node
        self._proxies = proxies
        self._response_timeout = response_timeout_seconds
        self._client_file = client_file
        self._resolve = resolve
        self._proxy: Proxy | None = None
        self._addresses: Sequence[str] = ()

    def find_proxy(self) -> None:
        """Choose the proxy. Every other step needs the choice; ``steps`` makes it first."""
        try:
            self._proxy = self._proxies.proxy_for(self.server)
        except ProxyError as error:
            raise CheckFailed(
                str(error),
                "set proxy or no_proxy in the configuration, or https_proxy or no_proxy in the environment",
            ) from None

    def steps(self) -> list[CheckStep]:
        """Return the checks up to a connection on which the server itself answers."""
        try:
            self.find_proxy()
        except CheckFailed as failure:
            return [("proxy", _failing(failure))]
        through: list[CheckStep] = [("proxy", self.through_proxy)] if self._proxy else []
        return [("dns", self.resolve), ("tcp", self.connect), *through]

    # Name and TCP, to the proxy if there is one.

    @property
    def _first_hop(self) -> tuple[str, int]:
        return (self._proxy.host, self._proxy.port) if self._proxy else (self.host, self.port)

    async def resolve(self) -> str:
        """Look up the first hop; return a sentence with its addresses."""
        host, _ = self._first_hop
        fix = f"correct the name, or this machine's resolver (/etc/resolv.conf): `getent hosts {host}`"
        try:
            self._addresses = await self.in_time(self._resolve(host), f"resolving {host}", fix)
        except OSError as error:
            raise CheckFailed(f"{host} cannot be resolved: {error.strerror}", fix) from None
        if self._addresses == [host]:
            return f"{host} is an address"
        return f"{host} is {', '.join(self._addresses)}"

    async def connect(self) -> str:
        """Connect to the first hop over TCP and close; return a sentence with the address."""
        opened = await self._open_tcp()
        await opened.stream.aclose()
        prefix = "the proxy at " if self._proxy else ""
        return f"connected to {prefix}{opened.address}"

    async def _open_tcp(self) -> Connected:
        host, port = self._first_hop
        where = join_host_port(host, port)
        try:
            return await self.in_time(connect_first(self._addresses, port), f"dialling {where}")
        except ConnectionResetError:  # a busy server accepts and resets at once
            raise ConnectionLost(f"{where} closed the connection as soon as it was open", self.hint) from None
        except OSError as error:
            refused = refused_by_errno(self._node, where, error)
            fix = f"let this machine reach {where} over TCP, or configure a proxy"
            if refused.reason is Reason.DIAL_REFUSED:
                fix = f"start the server there; {self.hint}"
            if self._proxy:
                fix = f"correct the proxy, or exempt the server from it: no_proxy = [{self.host!r}]"
            raise CheckFailed(refused.detail, fix) from None

    # The proxy.

    async def through_proxy(self) -> str:
        """Open a tunnel to the server through the proxy and close it; return a sentence."""
        async with await self._open():
            return f"{self._proxy} opened a tunnel to {self.server}"

    async def _open(self) -> SocketStream:
        """Open a connection on which the server itself answers."""
        stream = (await self._open_tcp()).stream
        if self._proxy is None:
            return stream
        try:
            await self.in_time(self._ask_proxy(self._proxy, stream), f"asking {self._proxy}")
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
            raise CheckFailed(detail, "is proxy really an HTTP proxy?") from None
        if answer.status_code != 200:
            reason = bytes(answer.reason).decode("ascii", "replace")
            fix = _PROXY_ANSWERS.get(answer.status_code, "ask the proxy's administrator, or set no_proxy")
            detail = f"{proxy} answered CONNECT {self.server} with {answer.status_code} {reason}"
            raise CheckFailed(detail.rstrip(), fix.format(server=self.server))

    def _connect_request(self, proxy: Proxy) -> h11.Request:
        headers = [("host", self.server)]
        if proxy.user:
            login = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
            headers.append(("proxy-authorization", f"Basic {login}"))
        return h11.Request(method="CONNECT", target=self.server, headers=headers)

    # TLS.

    async def shake_hands(self, context: ssl.SSLContext) -> TlsStream:
        """Open a TLS connection to the server, through the proxy if there is one."""
        tls = TlsStream(await self._open(), context, server_hostname=self.host)
        try:
            await self.in_time(tls.do_handshake(), f"the TLS handshake with {self.server}")
        except BaseException as error:
            await trio.aclose_forcefully(tls)
            if isinstance(error, trio.BrokenResourceError):
                raise await self._explain(error.__cause__) from None
            raise
        return tls

    async def _explain(self, error: BaseException | None) -> CheckFailed:
        """Return the failure for a failed handshake, chosen by OpenSSL's error code."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return await self._explain_certificate(error)
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            return CheckFailed(f"the program at {self.server} does not speak TLS", self.hint)
        if isinstance(error, ssl.SSLError) and not is_end_of_file(error):
            return CheckFailed(f"TLS with {self.server} failed: {reason_of(error)}", self.hint)
        detail = f"{self.server} closed the connection during the TLS handshake"
        return ConnectionLost(detail, f"{self.hint} does a firewall block traffic that it cannot inspect?")

    async def _explain_certificate(self, error: ssl.SSLCertVerificationError) -> CheckFailed:
        try:
            shown = await self._shown_certificate()
        except CheckFailed as failure:
            return failure
        return certificate_failure(self._port, error, shown)

    async def _shown_certificate(self) -> Description:
        """Return the certificate that the server presents, without verification of its issuer."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self._client_file is not None:
            context.load_cert_chain(self._client_file)
        tls = await self.shake_hands(context)
        leaf = tls.peer_certificate()
        await trio.aclose_forcefully(tls)
        try:
            return describe(leaf)
        except ValueError as error:
            raise CheckFailed(f"{self.server} presents an unusable certificate: {error}", self.hint) from None

    async def in_time(self, doing: Awaitable[T], what: str, fix: str = _FIREWALL) -> T:
        """Wait for a step. Raise ``CheckFailed`` with ``fix`` if ``what`` takes longer than the timeout."""
        try:
            with trio.fail_after(self._response_timeout):
                return await doing
        except trio.TooSlowError:
            raise CheckFailed(f"{what} took longer than {self._response_timeout:g} s", fix) from None


def certificate_failure(port: Port, error: ssl.SSLCertVerificationError, shown: Description) -> CheckFailed:
    """Return the failure for the certificate ``shown`` at ``port``, which OpenSSL did not verify."""
    server = port.server
    now = datetime.now(UTC)
    clock = f"this machine's clock says {as_minute(now)}"
    if error.verify_code in _UNKNOWN_ISSUER:
        detail = f"the certificate of {server} is issued by {shown.issuer}, not by your CA: TLS inspection?"
        return CheckFailed(detail, port.issuer_fix)
    if error.verify_code == _EXPIRED:
        detail = f"the certificate of {server} ended on {as_minute(shown.ends)}; {clock}"
        return CheckFailed(detail, f"if the clock is right, renew the server's certificate; else {SET_CLOCK}")
    if error.verify_code == _NOT_YET_VALID:
        detail = f"the certificate of {server} begins on {as_minute(shown.begins)}; {clock}"
        return CheckFailed(detail, SET_CLOCK)
    if error.verify_code in _WRONG_NAME:
        names = ", ".join(shown.names) or "no name"
        return CheckFailed(f"the certificate of {server} is for {names}", port.name_fix)
    return CheckFailed(f"the certificate of {server} is not valid: {error.verify_message}", port.hint)


def _failing(failure: CheckFailed) -> Callable[[], Awaitable[str]]:
    async def fail() -> str:
        raise failure

    return fail
