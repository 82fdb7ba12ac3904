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
from tunnel_agent.connect import Connector
from tunnel_agent.findings import Report, StepFailed, take_steps
from tunnel_agent.load import Installation
from tunnel_agent.status_page import as_milliseconds
from tunnel_agent.way import Way, agents_port
from tunnel_core.carrier import CarrierFailed
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Reason, Refused

_NEW_BUNDLE = "bring a new bundle from this server: `qanat-server issue node {node}`"
_ATTACH_FIXES = {
    Reason.UNAUTHENTICATED: _NEW_BUNDLE,
    Reason.WRONG_ROLE: _NEW_BUNDLE,
    Reason.WRONG_TRUST_DOMAIN: _NEW_BUNDLE,
    Reason.VERSION_MISMATCH: "update whichever of the two is older",
    Reason.TOO_MANY_SESSIONS: "raise [agents] max on the server",
    Reason.SERVER_STOPPING: "wait for the server to come back",
    Reason.CARRIER_LOST: "the server may not take this certificate: " + _NEW_BUNDLE,
}


def _fix_of(refused: Refused) -> str:
    """Only a carrier that was broken off, where all before it worked, puts the certificate in doubt."""
    if refused.reason is Reason.CARRIER_LOST:
        cause = refused.__cause__
        if not isinstance(cause, CarrierFailed):
            return "the steps before it passed: run this again, and see /etc/resolv.conf if it goes on"
        if cause.timed_out:
            return "the way is too slow, or something on it holds HTTP/2 back; see the server's log"
    return _ATTACH_FIXES.get(refused.reason, "see the server's log")


class ServerProbe:
    """The steps towards one server. Each leaves what the next one needs."""

    def __init__(self, server: str, installation: Installation, connector: Connector) -> None:
        self._server = server
        self._installation = installation
        self._connector = connector
        patience = installation.config.session.connect_timeout_seconds
        self._way = Way(
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
                raise StepFailed(f"{self._server} speaks {tls.version()}; the server asks for TLSv1.3", fix)
            if tls.alpn() != "h2":
                detail = f"{self._server} does not offer HTTP/2, which gRPC needs"
                raise StepFailed(detail, f"{self._way.hint} does something end TLS on the way?")
            described = describe(tls.peer_certificate())
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
            fix = _fix_of(refused).format(node=self._installation.node)
            raise StepFailed(f"{self._server}: {refused.detail}", fix) from None
        return f"welcomed as node {self._installation.node} by {software} in {took}; no session was touched"
