"""A man in the middle of agent and server: ends TLS with its own certificate, passes everything on."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from certs.bundle import split_pem
from certs.ca import LOOPBACK_NAMES, Authority
from certs.pkcs7 import certs_only
from tests.support.net.namespaces import Namespace
from tunnel_core.identity import Role

_SECONDS = 15.0


class Middle:
    """A relay that listens on loopback at the edge. ``received`` is everything that it received in the clear.

    With ``own_roots`` it answers requests for the roots itself, with its own.
    """

    def __init__(
        self, authority: Authority, server: tuple[str, int], folder: Path, edge: Namespace, *, own_roots: bool
    ) -> None:
        leaf = authority.issue(Role.SERVER, "main", names=(*LOOPBACK_NAMES, server[0]))
        self.received = bytearray()
        self._server = server
        self._edge = edge
        self._answer = _roots_answer(authority) if own_roots else b""
        files = folder / "middle.pem"
        files.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files)
        self._context.set_alpn_protocols(["http/1.1", "h2"])
        with edge.entered():
            self._listener = socket.create_server(("127.0.0.1", 0))

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            thread.join(_SECONDS)

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._edge.entered():
            while True:
                raw, _ = self._listener.accept()
                with contextlib.suppress(OSError), raw:  # a client without trust disconnects
                    raw.settimeout(_SECONDS)
                    with self._context.wrap_socket(raw, server_side=True) as user:
                        self._pass_on(user)

    def _pass_on(self, user: ssl.SSLSocket) -> None:
        """One request; all clients of a join close after one."""
        request = user.recv(64 * 1024)
        if not request:
            return  # a client that only read the certificate
        self.received += request
        if self._answer and b"cacerts" in request:
            user.sendall(self._answer)
            return
        trust_anybody = ssl.create_default_context()
        trust_anybody.check_hostname, trust_anybody.verify_mode = False, ssl.CERT_NONE
        raw = socket.create_connection(self._server, timeout=_SECONDS)
        with trust_anybody.wrap_socket(raw) as server:
            server.sendall(request)
            while answer := server.recv(64 * 1024):
                user.sendall(answer)


def _roots_answer(authority: Authority) -> bytes:
    told = authority.roots_pem + split_pem(authority.issuing.certificate_pem)[0]
    body = certs_only(told)
    assert base64.b64decode(body)
    head = [
        "HTTP/1.1 200 OK",
        "Content-Type: application/pkcs7-mime; smime-type=certs-only",
        "Content-Transfer-Encoding: base64",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(head).encode() + body
