"""The command ``health``: ask the running program's ``[ops]`` listener whether its event loop runs.

1. Container runtimes run the command every half minute, and on a small board each start of a program is
   expensive. So the module loads only a little of the standard library: no trio, no gRPC, no click, no
   schema.
2. It needs two keys, ``[ops] listen`` and ``tls``. It reads them without the schema, from the environment
   first and then the file, and ignores other errors in the configuration.
3. An answer of ``/healthz`` proves that the program is healthy. The state of the link does not count: a
   restart because of a network outage would only delay the return of the link.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from tunnel_core.text_files import NotPlainText, read_text_file, trouble_with

if TYPE_CHECKING:
    import ssl

TIMEOUT_SECONDS = 3.0
_MAX_FILE_BYTES = 1024 * 1024
_REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Unhealthy(Exception):  # noqa: N818 - named by the state that it reports
    """Raised when no healthy program answers. The text is a sentence for the user."""


class OpsEndpoint(NamedTuple):
    """Address of a program's ``[ops]`` listener, as the configuration writes it."""

    listen: str
    tls: bool = False

    @classmethod
    def find(
        cls, file: Path, default: str, environ: Mapping[str, str], *, is_named: bool = False
    ) -> OpsEndpoint:
        """Return the endpoint: from the environment, else the file, else ``default``. Raises ``Unhealthy``.

        A named file must exist, because the default address may belong to another program.
        """
        if is_named or environ.get("QANAT_CONFIG"):
            _require_file(file)
        listen_variable, tls_variable = environ.get("QANAT_OPS_LISTEN"), environ.get("QANAT_OPS_TLS")
        table = {} if None not in (listen_variable, tls_variable) else _ops_of(file)
        listen = table.get("listen", default) if listen_variable is None else listen_variable
        tls = table.get("tls", False) if tls_variable is None else tls_variable.strip().lower() == "true"
        return cls(str(listen), bool(tls))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to. Raises ``Unhealthy`` if the listener is off or is no address."""
        if not self.listen:
            raise Unhealthy("[ops] listen is switched off, so the program cannot be asked")
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal():
            raise Unhealthy(f"[ops] listen = {self.listen!r:.80} is not an address")
        return host.strip("[]"), int(port)  # the kernel connects "::" and "0.0.0.0" to this machine


def _require_file(file: Path) -> None:
    try:
        file.lstat()
    except FileNotFoundError:
        text = f"there is no configuration at {file}; correct --config or QANAT_CONFIG"
        raise Unhealthy(text) from None
    except OSError as error:
        raise Unhealthy(trouble_with(file, error)) from None


def _ops_of(file: Path) -> Mapping[str, Any]:
    import tomllib

    try:
        table = tomllib.loads(read_text_file(file, _MAX_FILE_BYTES)).get("ops", {})
    except FileNotFoundError:
        return {}
    except (OSError, NotPlainText) as error:
        raise Unhealthy(trouble_with(file, error)) from None
    except ValueError as error:
        raise Unhealthy(f"{file} cannot be read: {error}") from None
    return table if isinstance(table, Mapping) else {}


def ask(endpoint: OpsEndpoint, path: str = "/healthz") -> None:
    """Request ``path`` and return if the answer is 200. Raises ``Unhealthy``, also after a timeout."""
    try:
        answer = _exchange(endpoint, _REQUEST.format(path=path).encode())
    except OSError as error:
        raise Unhealthy(f"no program answers at {endpoint.listen}: {error.strerror or error}") from None
    line = answer.partition(b"\r\n")[0]
    if line.split(b" ")[1:2] != [b"200"]:
        raise Unhealthy(f"{endpoint.listen} answers {line.decode(errors='replace')!r:.100}")


def _exchange(endpoint: OpsEndpoint, request: bytes) -> bytes:
    with socket.create_connection(endpoint.address, TIMEOUT_SECONDS) as connection:
        if not endpoint.tls:
            return _exchange_over(connection, request)
        with _unverified_context().wrap_socket(connection) as encrypted:
            return _exchange_over(encrypted, request)


def _exchange_over(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    return connection.recv(1024)  # the answer is short, so its first segment has the status line


def _unverified_context() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the request stays on this machine and has no secret
    return context


def report(endpoint: OpsEndpoint) -> int:
    """Print one line; return the exit code for container runtimes: 0 if healthy, else 1."""
    try:
        ask(endpoint)
    except Unhealthy as error:
        _print(sys.stderr, f"unhealthy: {error}\n")
        return 1
    _print(sys.stdout, "healthy\n")
    return 0


def _print(stream: TextIO | None, line: str) -> None:
    """Write a line; ignore a full or closed output, because the exit code is the result."""
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.write(line)


def file_named(arguments: list[str]) -> Path | None:
    """Return FILE of ``--config FILE``; None without arguments. Raises ``ValueError`` for other arguments."""
    if not arguments:
        return None
    if len(arguments) == 2 and arguments[0] == "--config":
        return Path(arguments[1])
    raise ValueError(arguments)
