"""Connections to the server: mutual TLS to the addresses of a bundle, or a local unix socket."""

from __future__ import annotations

import os
import random
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from certs.bundle import Bundle
from tunnel_core.names import split_host_port
from tunnel_core.streams.sockets import SocketStream, connect_unix
from tunnel_core.streams.tls import TlsStream
from tunnel_core.streams.tls_errors import is_end_of_file

_DIAL_SECONDS = 10.0
"""Time for one address, including the TLS handshake."""
_BUSY_SECONDS = 15.0
"""Time for which the client retries a server that reports too many connections."""
_RESET_SECONDS = 3.0
"""Time for which the client retries a server that resets handshakes, as older servers do when busy."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.6
DIALS_AT_ONCE = 16
"""Dials of one ``qanat forward`` at once: half of the unauthenticated connections that a server allows one
address."""
DIALS_ONCE_KNOWN = 64
"""Dials at once after the first success: a quarter of what the server allows the address then. 300
connections over a round trip of 100 ms take 4.0 s in place of 5.5 s."""
_TURN_SECONDS = 30.0
_NO_ANSWER = (
    ". Does the server run, and may this machine connect to that port? On the server: "
    "qanat-server service status, or without a service qanat-server run"
)
_NO_NAME = ". Does the name have an address, in DNS or in this machine's /etc/hosts?"
_OVERLOADED = "TLSV1_ALERT_INTERNAL_ERROR"


class ServerUnreachable(Exception):  # noqa: N818 - named by what happened
    """The server does not answer, or the bundle does not trust its certificate."""


class ServerBusy(ServerUnreachable):
    """The server closed an unauthenticated connection. A retry within ``seconds`` may succeed."""

    def __init__(self, sentence: str, seconds: float) -> None:
        super().__init__(sentence)
        self.seconds = seconds


class Dialer(Protocol):
    """Opener of connections to one entrance of the server. ``name`` names the server in messages."""

    @property
    def name(self) -> str: ...

    async def dial(self) -> trio.abc.HalfCloseableStream:
        """Open a new connection. Raises ``ServerUnreachable``."""
        ...


@dataclass(frozen=True, slots=True)
class TlsDialer:
    """Dial the addresses in order until one completes the TLS handshake.

    While the server is busy, retry with growing pauses for at most 15 s.
    """

    addresses: Sequence[str]
    context: ssl.SSLContext

    @property
    def name(self) -> str:
        return f"the server at {self.addresses[0]}"

    async def dial(self) -> trio.abc.HalfCloseableStream:
        began, pause = trio.current_time(), _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._dial_once()
            except ServerBusy as busy:
                pause_now = pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
                tried = trio.current_time() - began
                if tried + pause_now > busy.seconds:
                    raise ServerUnreachable(f"{busy}; tried for {tried:.0f} s") from None
            await trio.sleep(pause_now)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _dial_once(self) -> TlsStream:
        failures, busy_seconds, answered, unresolved = [], 0.0, False, list[str]()
        for address in self.addresses:
            try:
                with trio.fail_after(_DIAL_SECONDS):
                    return await self._dial(address)
            except trio.TooSlowError:
                failures.append(f"{address} did not answer within {_DIAL_SECONDS:g} s")
            except OSError as error:
                failures.append(f"{address} cannot be reached: {_plain(error)}")
                unresolved += [address] if isinstance(error, socket.gaierror) else []
            except trio.BrokenResourceError as error:
                busy_seconds = max(busy_seconds, _retry_seconds(error))
                failures.append(f"{address}: {_handshake_failure(error)}")
                answered = True
        if busy_seconds:
            raise ServerBusy("; ".join(failures), busy_seconds)
        hint = _NO_NAME if len(unresolved) == len(failures) else _NO_ANSWER
        raise ServerUnreachable("; ".join(failures) + ("" if answered else hint))

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
    """Dial a unix socket. The mode of the socket's file replaces a certificate."""

    path: Path

    @property
    def name(self) -> str:
        return f"the server at {self.path}"

    async def dial(self) -> trio.abc.HalfCloseableStream:
        try:
            with trio.fail_after(_DIAL_SECONDS):
                return await connect_unix(self.path)
        except trio.TooSlowError:
            raise ServerUnreachable(f"{self.path}: its backlog was full for {_DIAL_SECONDS:g} s") from None
        except OSError as error:
            raise ServerUnreachable(
                f"{self.path} cannot be opened: {_plain(error)}{_unix_hint(error)}"
            ) from None


class PacedDialer:
    """Limit the concurrent dials to ``at_once``. Further dials wait in order of arrival.

    A server counts a connection against its source until the handshake is complete. After the first success
    the server knows the address, and ``once_known`` dials may run.
    """

    def __init__(
        self, dialer: Dialer, at_once: int = DIALS_AT_ONCE, once_known: int = DIALS_ONCE_KNOWN
    ) -> None:
        self._dialer = dialer
        self._turns = trio.Semaphore(at_once)
        self._more = once_known - at_once

    @property
    def name(self) -> str:
        return self._dialer.name

    async def dial(self) -> trio.abc.HalfCloseableStream:
        """Open a connection. Raises ``ServerUnreachable``, also after 30 s including the wait for a turn."""
        with trio.move_on_after(_TURN_SECONDS):
            async with self._turns:
                stream = await self._dialer.dial()
                self._widen()
                return stream
        others = self._turns.statistics().tasks_waiting
        text = f"no connection to {self.name} within {_TURN_SECONDS:g} s; {others} others wait here"
        raise ServerUnreachable(text)

    def _widen(self) -> None:
        more, self._more = self._more, 0
        for _ in range(more):
            self._turns.release()


def client_context(bundle: Bundle, path: Path) -> ssl.SSLContext:
    """Return a TLS context with the bundle's key and roots only. Raises ``ssl.SSLError`` for a mismatch."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=bundle.roots_pem.decode())
    context.load_cert_chain(path)  # ssl loads keys only from files.
    return context


def _plain(error: OSError) -> str:
    """Return the causes of ``error``, without the error in which trio wraps several attempts."""
    inner = error.__cause__
    if isinstance(inner, BaseExceptionGroup):
        return ", ".join(
            dict.fromkeys(_plain(part) for part in inner.exceptions if isinstance(part, OSError))
        )
    if isinstance(inner, OSError):
        return _plain(inner)
    # os.strerror, because trio's own text begins with the address.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def _retry_seconds(error: trio.BrokenResourceError) -> float:
    """Return the seconds for which to retry after ``error``, 0 for a permanent failure."""
    cause = error.__cause__
    is_cut = isinstance(cause, ssl.SSLError) and is_end_of_file(cause)
    if is_cut or isinstance(cause, ConnectionResetError | BrokenPipeError):
        return _RESET_SECONDS
    return _BUSY_SECONDS if _is_overloaded(error) else 0.0


def _is_overloaded(error: trio.BrokenResourceError) -> bool:
    """Whether the server sent the alert for too many connections (``tunnel_core.http.declining``)."""
    return isinstance(error.__cause__, ssl.SSLError) and error.__cause__.reason == _OVERLOADED


def _handshake_failure(error: trio.BrokenResourceError) -> str:
    if _is_overloaded(error):
        return f"the server has too many unauthenticated connections ({error})"
    return f"{error}{_tls_hint(error)}"


def _unix_hint(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "; run this as root, or use a bundle"
    return "; does the server run? qanat-server run" if isinstance(error, ConnectionRefusedError) else ""


def _tls_hint(error: trio.BrokenResourceError) -> str:
    """Return a hint for a failed handshake, by OpenSSL's error number (x509_vfy.h)."""
    cause = error.__cause__
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return ""
    match cause.verify_code:
        case 9:
            return " (is this machine's clock right?)"
        case 10:
            return " (is this machine's clock right? else the server needs a new certificate)"
        case 62 | 64:
            return " (the server's certificate is for other names: use one of them, or add this one to it)"
        case _:
            return " (is it the server that issued your bundle?)"
