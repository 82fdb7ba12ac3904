"""TLS of the server's listeners: contexts that can be reloaded, and handshakes with a deadline."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from certs.authority_folder import read_intermediates
from certs.files import path_for_openssl
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.lingering import linger
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import SocketTlsStream, TlsStream
from tunnel_server.listeners.admission import Ticket
from tunnel_server.listeners.listener import AcceptedConnection, Handler, Reporter

_BY_VERIFICATION = {10: Reason.CERTIFICATE_EXPIRED, 26: Reason.WRONG_ROLE}
"""X509_V_ERR_CERT_HAS_EXPIRED and _INVALID_PURPOSE of x509_vfy.h. Other errors mean ``UNAUTHENTICATED``."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a listener. ``trust_file`` holds the roots of the clients' certificates.

    ``user_trust_file`` holds further roots, for a listener that admits users.

    ``authority`` is the folder of the server's own authority, if it has one. Its intermediates verify clients
    that show their leaf without a chain, because the answer of EST is the leaf alone.
    """

    certificate_file: Path
    key_file: Path
    trust_file: Path
    min_version: str = "1.3"
    authority: Path | None = None
    alpn: str = "http/1.1"
    requires_certificate: bool = False
    """Whether the handshake fails for a client without a certificate. Else the client receives a 401."""
    user_trust_file: Path | None = None


class Contexts(Protocol):
    """The TLS context for new connections, which may be replaced at any time."""

    @property
    def current(self) -> ssl.SSLContext:
        """The context with which the next handshake begins."""


class TlsContexts:
    """The TLS context for new connections, which ``reload`` replaces."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.current = make_context(files)

    def reload(self) -> None:
        """Read the files again. Raises as ``make_context`` does, and keeps the old context then."""
        self.current = make_context(self._files)


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a server context that requests a client certificate, and verifies a certificate that is shown.

    Raises ``OSError``, of which ``ssl.SSLError`` is a subclass, or ``ValueError``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[files.min_version]
    with (
        path_for_openssl(files.certificate_file) as certificate,
        path_for_openssl(files.key_file) as key,
        path_for_openssl(files.trust_file) as trust,
    ):
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(trust)
    if files.user_trust_file is not None:
        with path_for_openssl(files.user_trust_file) as trust:
            context.load_verify_locations(trust)
    if files.authority is not None and (intermediates := read_intermediates(files.authority)):
        context.load_verify_locations(cadata=intermediates.decode())
    # Optional, so that a client without a certificate receives a 401 with the cause, not a mere TLS alert.
    context.verify_mode = ssl.CERT_REQUIRED if files.requires_certificate else ssl.CERT_OPTIONAL
    context.set_alpn_protocols([files.alpn])
    if files.min_version == "1.3":
        # Each suite of TLS 1.3 is strong, and the client knows which one its processor computes fast: a board
        # without instructions for AES offers ChaCha20 first, and gRPC offers AES-128 before AES-256.
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    refuse_resumption(context)
    return context


def refuse_resumption(context: ssl.SSLContext) -> None:
    """Make each connection of ``context`` prove its keys in a handshake of its own, and in one only.

    A resumed session would skip the check of the certificate's dates and, later, its revocation.
    """
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET


class ServedTlsStream(SocketTlsStream):
    """TLS of a connection to a listener."""

    @property
    def context(self) -> ssl.SSLContext:
        """The context of the connection, which the name that the client sent may have chosen."""
        return self._tls.context


def over_tls(
    entrance: str, contexts: Contexts, handshake_seconds: float, handler: Handler, reporter: Reporter
) -> Handler:
    """Return a handler that completes the TLS handshake and passes the ``TlsStream`` to ``handler``.

    A handshake that fails, or takes more than ``handshake_seconds``, is reported to ``reporter``.
    """
    turns = trio.Lock()

    async def handle(accepted: AcceptedConnection) -> None:
        transport = accepted.stream
        assert isinstance(transport, SocketStream)
        stream = ServedTlsStream(transport, contexts.current, server_side=True)
        try:
            await _handshake(stream, handshake_seconds, HandshakeTurns(turns, accepted.ticket))
        except Refused as refused:
            accepted.ticket.refused()
            if not (refused.reason is Reason.HANDSHAKE_FAILED and _has_left(stream)):
                reporter.refused(entrance, accepted.source, refused)
            # Without lingering the user sees "connection reset" instead of the alert "certificate expired",
            # because in TLS 1.3 a client sends its request before it can receive the alert.
            await linger(transport, is_sending=True)
            await transport.aclose()
            return
        accepted.ticket.progressed()
        await handler(accepted._replace(stream=stream, turns=turns))

    return handle


class HandshakeTurns:
    """Turns of one connection at the processor. The connection does not give way while it waits or computes.

    This holds for the first two turns, the two steps of a handshake. A client that sends single bytes causes
    more turns, which do not count as progress.
    """

    def __init__(self, turns: trio.Lock, ticket: Ticket) -> None:
        self._turns = turns
        self._ticket = ticket
        self._steps_left = 2

    async def __aenter__(self) -> None:
        if self._steps_left:
            self._ticket.begin_work()
        try:
            await self._turns.acquire()
        except BaseException:
            self._end_step()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._turns.release()
        self._end_step()

    def _end_step(self) -> None:
        if self._steps_left:
            self._steps_left -= 1
            self._ticket.progressed()


def _has_left(stream: TlsStream) -> bool:
    """Whether the client closed the connection before it sent a byte.

    Such a client only checks that the port is open, as ``join``, ``check`` and load balancers do, or another
    of its attempts was faster. No handshake has failed.
    """
    return stream.has_ended and not stream.has_received


async def _handshake(stream: TlsStream, seconds: float, turns: HandshakeTurns) -> None:
    try:
        with trio.fail_after(seconds):
            await stream.do_handshake(turns)
    except trio.TooSlowError:
        detail = f"the TLS handshake was not completed within {seconds:g} seconds"
        raise Refused(Reason.HANDSHAKE_FAILED, detail) from None
    except trio.BrokenResourceError as error:
        raise Refused(_reason(error), str(error)) from None


def _reason(error: trio.BrokenResourceError) -> Reason:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _BY_VERIFICATION.get(cause.verify_code, Reason.UNAUTHENTICATED)
    too_old = isinstance(cause, ssl.SSLError) and cause.reason == "UNSUPPORTED_PROTOCOL"
    return Reason.TLS_TOO_OLD if too_old else Reason.HANDSHAKE_FAILED
