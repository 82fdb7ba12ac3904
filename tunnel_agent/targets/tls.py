"""TLS from the agent to the targets of https services, so that the server's ``web`` entrance sees HTTP."""

from __future__ import annotations

import ssl
from pathlib import Path

import trio

from certs.files import path_for_openssl
from tunnel_agent.targets.policy import Published
from tunnel_core.names import LOOPBACK
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import SocketTlsStream
from tunnel_core.streams.tls_errors import reason_of
from tunnel_core.text_files import NotPlainText


class TargetTls:
    """TLS contexts of the https services, made at their first use and kept.

    Loading the system's roots takes some MiB, which an agent without https services never needs.
    """

    def __init__(self, node: str, file: str) -> None:
        self._node = node
        self._file = file
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}

    async def wrap(self, stream: SocketStream, service: Published) -> SocketTlsStream:
        """Complete a TLS handshake over ``stream``. Raises ``Refused``.

        Failure and cancellation abort ``stream``.
        """
        try:
            context = self._usable_context(service)
            tls = SocketTlsStream(stream, context, server_hostname=service.target.host or LOOPBACK)
            await tls.do_handshake()
        except BaseException as error:
            stream.abort()
            if isinstance(error, trio.BrokenResourceError | OSError):
                raise self._refused(service, error.__cause__ or error) from error
            raise
        return tls

    def _usable_context(self, service: Published) -> ssl.SSLContext:
        """Return the context of ``service``. Raises ``Refused`` for a ``ca_file`` that cannot be used."""
        try:
            return self._context(service)
        except ssl.SSLError as error:
            cause = reason_of(error)
        except OSError as error:
            cause = error.strerror or str(error)
        except NotPlainText as error:
            cause = str(error)
        sentence = f"node {self._node}: ca_file {service.ca_file} of service {service.name} cannot be used"
        raise Refused(Reason.DIAL_FAILED, f"{sentence}: {cause}")

    def _context(self, service: Published) -> ssl.SSLContext:
        key = (service.ca_file, service.verify)
        if key not in self._contexts:
            self._contexts[key] = _make_context(service)
        return self._contexts[key]

    def _refused(self, service: Published, error: BaseException) -> Refused:
        what = f"node {self._node}: TLS to {service.target} failed"
        if isinstance(error, ssl.SSLCertVerificationError):
            fix = f"set ca_file or verify = false for service {service.name} in {self._file}"
            return Refused(Reason.TARGET_PROTOCOL, f"{what}: {error.verify_message}; {fix}")
        if isinstance(error, ssl.SSLError):
            return Refused(Reason.TARGET_PROTOCOL, f"{what}: {reason_of(error)}")
        return Refused(Reason.TARGET_PROTOCOL, f"{what}: the target closed the connection")


def _make_context(service: Published) -> ssl.SSLContext:
    if service.ca_file:
        with path_for_openssl(Path(service.ca_file)) as roots:
            context = ssl.create_default_context(cafile=roots)
    else:
        context = ssl.create_default_context()
    context.options |= ssl.OP_NO_RENEGOTIATION  # tunnel_core.streams.tls cannot renegotiate
    context.set_alpn_protocols(["http/1.1"])
    if not service.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
