"""How this person gets in: a bundle, or else the sockets of a server on this machine."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from certs.bundle import BundleError, read_bundle
from tunnel_client.dial import Dialer, TlsDialer, UnixDialer, client_context
from tunnel_core import paths
from tunnel_core.command_line import CommandError, ExitCode


@dataclass(frozen=True, slots=True)
class Access:
    """The entrances that can be reached; None where there is no way to one."""

    api: Dialer | None
    connect: Dialer | None

    def need_api(self) -> Dialer:
        return self.api or _no_way("the admin socket of a server on this machine", paths.hidden_socket())

    def need_connect(self) -> Dialer:
        return self.connect or _no_way(f"a connect socket at {paths.connect_socket()}", None)


def find_access(option: Path | None, environ: Mapping[str, str] = os.environ) -> Access:
    """By ``--bundle``, ``QANAT_BUNDLE``, the config folder's bundle, then local sockets.

    Raises ``CommandError`` for a bundle that was found and cannot be used: another is not tried.
    """
    path = paths.find_user_bundle(option, environ)
    if path is not None:
        dialer = _bundle_dialer(path)
        return Access(dialer, dialer)
    return Access(_unix(paths.find_admin_socket()), _unix(paths.find_connect_socket()))


def _bundle_dialer(path: Path) -> Dialer:
    try:
        bundle = read_bundle(path)
        context = client_context(bundle, path)
    except BundleError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except ssl.SSLError as error:
        message = f"{path}: its key and certificates do not fit together: {error.reason or error}"
        raise CommandError(ExitCode.USAGE, message) from None
    if not bundle.https:
        raise CommandError(ExitCode.USAGE, f"{path} names no server in its line 'Https:'")
    return TlsDialer(bundle.https, context)


def _unix(path: Path | None) -> Dialer | None:
    return UnixDialer(path) if path else None


def _no_way(socket: str, hidden: Path | None) -> Dialer:
    also = f"there is also not {socket}"
    if hidden is not None:
        also = f"if you mean the server on this machine, use sudo: you may not enter {hidden.parent}"
    raise CommandError(
        ExitCode.USAGE,
        f"no way in: name a bundle with --bundle or {paths.BUNDLE_VARIABLE}, or put one at"
        f" {paths.user_bundle_file()}; {also}",
    )
