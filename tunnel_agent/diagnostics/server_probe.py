"""Probe one server step by step, so that the failed step names the cause.

gRPC reports little about a failed connection, so the probe first tries name, TCP, proxy and TLS separately.
The last step is a real attach that stops at the server's welcome. The attach proves everything, and a running
agent keeps its session.
"""

from __future__ import annotations

import contextlib
import ssl

import trio

from certs.x509 import describe
from tunnel_agent.attach.connector import Connector
from tunnel_agent.checks import CheckFailed, Report, take_steps
from tunnel_agent.installation import Installation
from tunnel_agent.network.server_path import ServerPath, agents_port
from tunnel_core.carrier.interface import CarrierFailed
from tunnel_core.humanize import as_milliseconds, as_minute
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import TlsStream

_NEW_BUNDLE = "bring a new bundle from this server: `qanat-server issue node {node}`"
_REJOIN = "join again with a new token (`qanat-agent join SERVER --again`), or " + _NEW_BUNDLE
_ATTACH_FIXES = {
    Reason.UNAUTHENTICATED: _REJOIN,
    Reason.WRONG_ROLE: _REJOIN,
    Reason.WRONG_TRUST_DOMAIN: _REJOIN,
    Reason.REVOKED: _REJOIN,
    Reason.ROOT_RETIRED: _REJOIN,
    Reason.CERTIFICATE_EXPIRED: "if both clocks are right, " + _REJOIN,
    Reason.DUPLICATE_NODE: "give the other machine a bundle of its own: `qanat-server issue node NAME`",
    Reason.NUMBER_OUT_OF_RANGE: "correct that setting; if the configuration does not have it, see"
    " docs/errors.md",
    Reason.TOO_MANY_ATTACHES: "wait a few seconds; if the error stays, does the agent restart all the time,"
    " or does another program use this bundle?",
    Reason.VERSION_MISMATCH: "update the older of the two programs",
    Reason.TOO_MANY_SESSIONS: "raise [agents] max on the server",
    Reason.NO_DESCRIPTORS: "raise LimitNOFILE= of the server",
    Reason.SERVER_STOPPING: "wait until the server is back",
    Reason.ATTACH_TIMEOUT: "is the server overloaded? see its log; on slow links raise [session]"
    " attach_timeout_seconds and connect_timeout_seconds here",
}
_NOT_ACCEPTED = "the server closes the connection when it has seen this certificate: " + _REJOIN
_ACCEPTED = (
    "the server accepted this certificate, and the connection broke afterwards: try again, see the"
    " server's log of this moment, and ask whether a firewall or proxy on the path breaks HTTP/2"
)
_SETTINGS_SECONDS = 2.0
"""How long to wait for the server's first bytes. A server that accepts the certificate sends them at once."""


class ServerProbe:
    """Steps towards one server. Each step needs the results of the previous ones."""

    def __init__(self, server: str, installation: Installation, connector: Connector) -> None:
        self._server = server
        self._installation = installation
        self._connector = connector
        self._is_accepted = False
        """Whether the server continued after it had read this node's certificate."""
        self._path = ServerPath(
            agents_port(server),
            installation.node,
            installation.proxy,
            installation.config.session.connect_timeout_seconds,
            installation.bundle_file,
        )

    async def run(self, report: Report) -> bool:
        """Take and report the steps up to the first failure; return whether all passed."""
        steps = [*self._path.steps(), ("tls", self._shake_hands), ("attach", self._attach)]
        return await take_steps(steps, report)

    async def _shake_hands(self) -> str:
        async with await self._path.shake_hands(self._context()) as tls:
            if tls.version() != "TLSv1.3":
                fix = "let TLS pass unchanged on the path, or set [tls] min_version on the server"
                raise CheckFailed(f"{self._server} speaks {tls.version()}; the server asks for TLSv1.3", fix)
            if tls.alpn() != "h2":
                detail = f"{self._server} does not offer HTTP/2, which gRPC needs"
                raise CheckFailed(detail, f"{self._path.hint} does a proxy on the path terminate TLS?")
            described = describe(tls.peer_certificate())
            self._is_accepted = await _sends_settings(tls)
            with contextlib.suppress(trio.BrokenResourceError):
                await tls.aclose()
        return f"{tls.version()}, certificate of {described.subject} until {as_minute(described.ends)}"

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self._installation.bundle.roots_pem.decode())
        context.load_cert_chain(self._installation.bundle_file)
        context.set_alpn_protocols(["h2"])
        return context

    async def _attach(self) -> str:
        start = trio.current_time()
        try:
            software = (await self._connector.probe(self._server)).software
            duration = as_milliseconds(trio.current_time() - start)
        except Refused as refused:
            fix = self._fix_of(refused).format(node=self._installation.node)
            raise CheckFailed(f"{self._server}: {refused.detail}", fix) from None
        node = self._installation.node
        return f"welcomed as node {node} by {software} in {duration}; no session was touched"

    def _fix_of(self, refused: Refused) -> str:
        """Return the fix. Doubt the certificate only if the server closed the connection after reading it."""
        if refused.reason is not Reason.CARRIER_LOST:
            return _ATTACH_FIXES.get(refused.reason, "see the server's log")
        match refused.__cause__:
            case OSError() | trio.TooSlowError():  # only the look-up has these causes
                return "the earlier steps passed: run this command again; if it fails, see /etc/resolv.conf"
            case CarrierFailed(timed_out=True):
                return "the path is too slow, or a program on it delays HTTP/2; see the server's log"
            case _:
                return _ACCEPTED if self._is_accepted else _NOT_ACCEPTED


async def _sends_settings(tls: TlsStream) -> bool:
    """Whether the server sends its HTTP/2 settings.

    In TLS 1.3 the client finishes the handshake before the server reads the client's certificate. So a
    refused certificate shows only in the first read, as an alert or as the end.
    """
    try:
        with trio.move_on_after(_SETTINGS_SECONDS):
            return bool(await tls.receive_some())
    except trio.BrokenResourceError:
        return False
    return True  # the server is slow, and has not refused
