"""Connections to the server: mutual TLS to the addresses of a bundle, or a local unix socket."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from certs.bundle import Bundle
from tunnel_core.names import split_host_port
from tunnel_core.sockets import SocketStream
from tunnel_core.tls import TlsStream

_DIAL_SECONDS = 10.0
"""For each address, TLS handshake included."""


class ServerUnreachable(Exception):  # noqa: N818 - named by what happened
    """The server does not answer, or it is not the one that the bundle trusts."""


class Dialer(Protocol):
    """Opens connections to one entrance of the server. ``name`` stands for it in sentences."""

    @property
    def name(self) -> str: ...

    async def dial(self) -> trio.abc.HalfCloseableStream:
        """A fresh connection. Raises ``ServerUnreachable``."""
        ...


@dataclass(frozen=True, slots=True)
class TlsDialer:
    """Tries the addresses in their order; the first that completes the handshake is taken."""

    addresses: Sequence[str]
    context: ssl.SSLContext

    @property
    def name(self) -> str:
        return f"the server at {self.addresses[0]}"

    async def dial(self) -> trio.abc.HalfCloseableStream:
        failures = []
        for address in self.addresses:
            try:
                with trio.fail_after(_DIAL_SECONDS):
                    return await self._dial(address)
            except trio.TooSlowError:
                failures.append(f"{address} did not answer within {_DIAL_SECONDS:g} s")
            except OSError as error:
                failures.append(f"{address} cannot be reached: {_plain(error)}")
            except trio.BrokenResourceError as error:
                failures.append(f"{address}: {error}{_tls_hint(error)}")
        raise ServerUnreachable("; ".join(failures))

    async def _dial(self, address: str) -> TlsStream:
        host, port = split_host_port(address)
        tcp = SocketStream.adopt(await trio.open_tcp_stream(host, port))
        stream = TlsStream(tcp, self.context, server_hostname=host)
        try:
            await stream.do_handshake()
        except BaseException:
            tcp.abort()
            raise
        return stream


@dataclass(frozen=True, slots=True)
class UnixDialer:
    """Who may open the socket file needs no certificate."""

    path: Path

    @property
    def name(self) -> str:
        return f"the server at {self.path}"

    async def dial(self) -> trio.abc.HalfCloseableStream:
        try:
            return SocketStream.adopt(await trio.open_unix_socket(self.path))
        except OSError as error:
            raise ServerUnreachable(f"{self.path} cannot be opened: {_plain(error)}") from None


def client_context(bundle: Bundle, path: Path) -> ssl.SSLContext:
    """TLS with the bundle's key and roots and no others. Raises ``ssl.SSLError`` if they do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=bundle.roots_pem.decode())
    context.load_cert_chain(path)  # ssl takes keys from files only
    return context


def _plain(error: OSError) -> str:
    """The causes without trio's wrapping of several attempts."""
    inner = error.__cause__
    if isinstance(inner, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(_plain(one) for one in inner.exceptions if isinstance(one, OSError)))
    if isinstance(inner, OSError):
        return _plain(inner)
    # The plain words of the number: trio has put the address before them.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def _tls_hint(error: trio.BrokenResourceError) -> str:
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return " (is it the server that issued your bundle?)"
    return ""
