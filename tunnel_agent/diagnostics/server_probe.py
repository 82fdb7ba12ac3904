"""The way to one server, step by step, so that a failure is named by the step that fails.

gRPC tells little about why it cannot connect, so name, TCP, proxy and TLS are tried here by hand
first. The last step is a real attach that stops at the server's welcome: it proves everything and takes
no session away from a running agent.
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
    Reason.NUMBER_OUT_OF_RANGE: "correct that setting, and see docs/errors.md if nobody set it so",
    Reason.TOO_MANY_ATTACHES: "wait a few seconds; if it goes on, does the agent restart all the time,"
    " or does another program use this bundle?",
    Reason.VERSION_MISMATCH: "update whichever of the two is older",
    Reason.TOO_MANY_SESSIONS: "raise [agents] max on the server",
    Reason.NO_DESCRIPTORS: "raise LimitNOFILE= of the server",
    Reason.SERVER_STOPPING: "wait for the server to come back",
    Reason.ATTACH_TIMEOUT: "is the server overloaded? see its log; on slow links raise [session]"
    " attach_timeout_seconds and connect_timeout_seconds here",
}
_NOT_TAKEN = "the server closes the connection when it has seen this certificate: " + _REJOIN
_TAKEN = (
    "the server took this certificate, and something broke the connection after it: try again, look into"
    " the server's log of this moment, and ask if a firewall or proxy on the way cuts HTTP/2"
)
_SETTINGS_SECONDS = 2.0
"""So long a server has to speak first, which it does at once if it takes the certificate."""


class ServerProbe:
    """The steps towards one server. Each leaves what the next one needs."""

    def __init__(self, server: str, installation: Installation, connector: Connector) -> None:
        self._server = server
        self._installation = installation
        self._connector = connector
        self._is_taken = False
        """Whether the server went on after it saw this node's certificate."""
        patience = installation.config.session.connect_timeout_seconds
        self._way = ServerPath(
            agents_port(server), installation.node, installation.proxy, patience, installation.bundle_file
        )

    async def run(self, report: Report) -> bool:
        """Takes the steps and reports each; whether all passed."""
        steps = [*self._way.steps(), ("tls", self._shake_hands), ("attach", self._attach)]
        return await take_steps(steps, report)

    async def _shake_hands(self) -> str:
        async with await self._way.shake_hands(self._context()) as tls:
            if tls.version() != "TLSv1.3":
                fix = "let TLS pass unchanged on the way, or set [tls] min_version on the server"
                raise CheckFailed(f"{self._server} speaks {tls.version()}; the server asks for TLSv1.3", fix)
            if tls.alpn() != "h2":
                detail = f"{self._server} does not offer HTTP/2, which gRPC needs"
                raise CheckFailed(detail, f"{self._way.hint} does something end TLS on the way?")
            described = describe(tls.peer_certificate())
            self._is_taken = await _speaks(tls)
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
            took = as_milliseconds(trio.current_time() - start)
        except Refused as refused:
            fix = self._fix_of(refused).format(node=self._installation.node)
            raise CheckFailed(f"{self._server}: {refused.detail}", fix) from None
        return f"welcomed as node {self._installation.node} by {software} in {took}; no session was touched"

    def _fix_of(self, refused: Refused) -> str:
        """Only a carrier that is broken off when the certificate was seen puts the certificate in doubt."""
        if refused.reason is not Reason.CARRIER_LOST:
            return _ATTACH_FIXES.get(refused.reason, "see the server's log")
        match refused.__cause__:
            case OSError() | trio.TooSlowError():  # of the look-up: the connection itself has none
                return "the steps before it passed: run this again, and see /etc/resolv.conf if it goes on"
            case CarrierFailed(timed_out=True):
                return "the way is too slow, or something on it holds HTTP/2 back; see the server's log"
            case _:
                return _TAKEN if self._is_taken else _NOT_TAKEN


async def _speaks(tls: TlsStream) -> bool:
    """Whether the server sends its HTTP/2 settings.

    In TLS 1.3 the client is ready before the server has looked at its certificate. One that is refused shows
    in the first read only, as an alert or as the end.
    """
    try:
        with trio.move_on_after(_SETTINGS_SECONDS):
            return bool(await tls.receive_some())
    except trio.BrokenResourceError:
        return False
    return True  # slow, and not refused
