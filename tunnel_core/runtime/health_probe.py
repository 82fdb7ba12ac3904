"""``health``: asks the running program's own listener whether its event loop turns.

1. Container runtimes ask every half minute, and on a small board each start of a program counts. So
   this loads nothing but a little of the standard library: no trio, no gRPC, no click, no schema.
2. Of the configuration it needs one key, ``[ops] listen``, and whether it speaks TLS; so it reads those two
   raw, from the environment first and then the file, and says nothing of other mistakes.
3. That ``/healthz`` answers is the proof. The state of the link is none of its business: a program
   that is restarted because its network is away only takes longer to come back.
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


class Unhealthy(Exception):  # noqa: N818 - named by what is the case
    """No healthy program answers; the text is a sentence for the user."""


class OpsEndpoint(NamedTuple):
    """Where a program's own listener is, as the configuration writes it."""

    listen: str
    tls: bool = False

    @classmethod
    def find(
        cls, file: Path, default: str, environ: Mapping[str, str], *, is_named: bool = False
    ) -> OpsEndpoint:
        """Find the endpoint: from the environment, else the file, else ``default``. Raises ``Unhealthy``.

        A named file must exist, because the default address may belong to another program.
        """
        if is_named or environ.get("QANAT_CONFIG"):
            _require_there(file)
        written = environ.get("QANAT_OPS_LISTEN"), environ.get("QANAT_OPS_TLS")
        table = {} if None not in written else _ops_of(file)
        listen = table.get("listen", default) if written[0] is None else written[0]
        tls = table.get("tls", False) if written[1] is None else written[1].strip().lower() == "true"
        return cls(str(listen), bool(tls))

    @property
    def address(self) -> tuple[str, int]:
        """Raises ``Unhealthy``."""
        if not self.listen:
            raise Unhealthy("[ops] listen is switched off, so there is nobody to ask")
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal():
            raise Unhealthy(f"[ops] listen = {self.listen!r:.80} is no address")
        return host.strip("[]"), int(port)  # of "::" and "0.0.0.0" the kernel takes this machine's own


def _require_there(file: Path) -> None:
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


def ask(door: OpsEndpoint, path: str = "/healthz") -> None:
    """Returns if it answers that all is well. Raises ``Unhealthy``."""
    try:
        answer = _exchange(door, _REQUEST.format(path=path).encode())
    except OSError as error:
        raise Unhealthy(f"nobody answers at {door.listen}: {error.strerror or error}") from None
    line = answer.partition(b"\r\n")[0]
    if line.split(b" ")[1:2] != [b"200"]:
        raise Unhealthy(f"{door.listen} answers {line.decode(errors='replace')!r:.100}")


def _exchange(door: OpsEndpoint, request: bytes) -> bytes:
    with socket.create_connection(door.address, TIMEOUT_SECONDS) as connection:
        if not door.tls:
            return _ask_over(connection, request)
        with _any_certificate().wrap_socket(connection) as encrypted:
            return _ask_over(encrypted, request)


def _ask_over(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    return connection.recv(1024)  # the status line is in the first segment of so short an answer


def _any_certificate() -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is this machine that is asked, and nothing secret is said
    return context


def report(door: OpsEndpoint) -> int:
    """Prints one line; returns the exit code: 0 healthy, 1 not, as container runtimes want it."""
    try:
        ask(door)
    except Unhealthy as error:
        _say(sys.stderr, f"unhealthy: {error}\n")
        return 1
    _say(sys.stdout, "healthy\n")
    return 0


def _say(stream: TextIO | None, line: str) -> None:
    """The exit code is the answer; a full or closed output changes nothing."""
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.write(line)


def file_named(arguments: list[str]) -> Path | None:
    """``--config FILE`` as the only argument; None if there is none. Raises ``ValueError`` for all else."""
    if not arguments:
        return None
    if len(arguments) == 2 and arguments[0] == "--config":
        return Path(arguments[1])
    raise ValueError(arguments)
