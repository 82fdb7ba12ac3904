"""Access of the user to a server: by a bundle, or by the sockets of a server on this machine."""

from __future__ import annotations

import os
import shlex
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from certs.bundle import Bundle, BundleError, read_bundle
from tunnel_client.dial import Dialer, TlsDialer, UnixDialer, client_context
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.config import paths


@dataclass(frozen=True, slots=True)
class Access:
    """Dialers of the reachable entrances. None stands for an entrance that cannot be reached."""

    api: Dialer | None
    connect: Dialer | None

    def need_api(self) -> Dialer:
        """Return the dialer of the API. Raises ``CommandError`` without one."""
        return self.api or _no_access(f"a server's admin socket ({paths.admin_socket()})")

    def need_connect(self) -> Dialer:
        """Return the dialer of the ``connect`` entrance. Raises ``CommandError`` without one."""
        return self.connect or _no_access(f"a server's connect socket ({paths.connect_socket()})")


def find_access(option: Path | None, environ: Mapping[str, str] = os.environ) -> Access:
    """Find the access by ``--bundle``, ``QANAT_BUNDLE``, the config folder's bundle, or local sockets.

    Raises ``CommandError`` for a bundle that exists and is not usable. The next choice is not tried then.
    """
    path = paths.find_user_bundle(option, environ)
    if path is not None:
        dialer = _bundle_dialer(path)
        return Access(dialer, dialer)
    return Access(_unix(paths.find_admin_socket()), _unix(paths.find_connect_socket()))


def own_bundle(option: Path | None, environ: Mapping[str, str] = os.environ) -> Bundle | None:
    """Return the bundle that ``find_access`` uses, None if it uses a socket. Raises ``CommandError``."""
    path = paths.find_user_bundle(option, environ)
    return None if path is None else _read(path)


def _read(path: Path) -> Bundle:
    try:
        return read_bundle(path)
    except BundleError as error:
        raise CommandError(ExitCode.USAGE, f"{error}{_next_step_for(path, error.__cause__)}") from None


def _bundle_dialer(path: Path) -> Dialer:
    bundle = _read(path)
    try:
        context = client_context(bundle, path)
    except ssl.SSLError as error:
        message = f"{path}: its key and certificates do not match: {error.reason or error}"
        raise CommandError(ExitCode.USAGE, message) from None
    if not bundle.https:
        raise CommandError(ExitCode.USAGE, f"{path} names no server in its line 'Https:'")
    return TlsDialer(bundle.https, context)


def _next_step_for(path: Path, cause: BaseException | None) -> str:
    if isinstance(cause, FileNotFoundError) and paths.is_absent(path):
        return "; create one on the server, `qanat-server issue user NAME`, and copy its file to this machine"
    hint = paths.rights_hint(cause) if isinstance(cause, OSError) else ""
    return f"; {hint}" if hint else ""


def _unix(path: Path | None) -> Dialer | None:
    return UnixDialer(path) if path else None


def _no_access(socket: str) -> Dialer:
    """Raise ``CommandError`` with the places that were tried, and the next step."""
    tried = f"no access to a server: there is neither a bundle at {paths.user_bundle_file()} nor {socket}"
    raise CommandError(ExitCode.USAGE, f"{tried}. {_next_step()}")


def _next_step() -> str:
    issue = "Create a bundle on the server, `qanat-server issue user NAME`"
    if bundle := paths.bundle_of_invoker():
        return f"You are root now; to use your own bundle, add --bundle {shlex.quote(str(bundle))}"
    if paths.find_admin_socket() is not None:
        return f"{issue}, or set [connect.unix] path in the server's configuration"
    if paths.exists(paths.server_config_file()):
        return "A server is set up on this machine; is it running? qanat-server run"
    if root_config := paths.config_of_root(paths.server_config_file()):
        return f"If you mean the server of this machine ({root_config}), run this as root, with sudo. {issue}"
    return f"{issue}, copy its file here, and name it with --bundle or {paths.BUNDLE_VARIABLE}"
