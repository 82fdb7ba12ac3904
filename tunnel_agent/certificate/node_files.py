"""Files of a node: lock their folder, prove that it is writable, store the key and the bundle."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from certs.authority_folder import chown_like
from certs.bundle import Bundle, BundleError, read_bundle, write_bundle
from certs.file_modes import is_mount_point
from certs.files import (
    KeyFileError,
    hold_folder,
    make_private_folder,
    read_private,
    real_place,
    remove_interrupted,
    remove_staged,
    write_private,
)
from certs.requests import NewRequest, make_request, request_for
from certs.x509 import load_signing_key
from tunnel_agent.certificate.node_places import Files
from tunnel_agent.checks import CheckFailed
from tunnel_core.identity import Role, SpiffeId

_PROBE_BYTES = 64 * 1024
"""More bytes than a join writes, so that a full disk is noticed before the token is used."""
_FIXES = {
    errno.EROFS: "make that file system writable, or name another place with --config",
    errno.ENOSPC: "make room there: `df -h {folder}`",
    errno.EDQUOT: "make room there: the quota is used up",
    errno.EACCES: "run it as root, or as the user who owns {folder}; or name another place with --config",
    errno.EPERM: "run it as root, or as the user who owns {folder}; or name another place with --config",
}


_KUBERNETES = (
    "it is a volume that Kubernetes manages, for example a Secret, so no renewal can be saved there: let an"
    " initContainer copy the bundle to a volume of the pod's own, and name that in bundle_file; or put a new"
    " bundle into the Secret before this one expires, and the agent loads it"
)
_DATA = "..data"
"""The symbolic link in each Secret and ConfigMap volume that leads to its files."""
_SINGLE_FILE = "mount the folder that holds it, not the file (docker -v, Kubernetes subPath)"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for one join or renewal as long as the block runs.

    Raises ``CheckFailed`` if another one holds the lock, or if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_folder(folder, wait=False))
        except BlockingIOError:
            raise CheckFailed(
                f"another join or renewal is running in {folder}",
                "wait until that one ends, and run this command again",
            ) from None
        except OSError as error:
            raise cannot_write(folder, error) from None
        yield


def place_of_bundle(file: Path) -> Path:
    """Return the path to write the bundle ``file`` to; see ``real_place``. Raises ``CheckFailed``."""
    try:
        return real_place(file)
    except OSError as error:
        raise cannot_write(file.parent, error) from None


def prove_writable(files: Files) -> str:
    """Make the folders, and write and remove a probe in each folder that a join writes to.

    An existing configuration stays unchanged. Raises ``CheckFailed``.
    """
    require_replaceable(files.bundle)
    place = place_of_bundle(files.bundle)
    written = [place] if os.path.lexists(files.config) else [place, files.config]
    for folder in dict.fromkeys(file.parent for file in written):
        try:
            _make(folder, private=folder == place.parent)
        except OSError as error:
            raise cannot_write(folder, error) from None
        prove_folder(folder)
    return f"{' and '.join(map(str, written))} can be written"


def prove_place(file: Path) -> None:
    """Prove that ``file`` can be replaced, before the server issues a certificate. Raises ``CheckFailed``."""
    require_replaceable(file)
    prove_folder(place_of_bundle(file).parent)


def require_replaceable(file: Path) -> None:
    """Raise ``CheckFailed`` for a file that is a mount point, because no rename can replace it."""
    if is_mount_point(file):
        raise CheckFailed(f"{file} is mounted as a single file, so it cannot be replaced", _SINGLE_FILE)


def require_writable(folder: Path) -> None:
    """Ask the system, without a write. Raises ``CheckFailed`` if a new bundle could not be saved there."""
    if os.access(folder, os.W_OK | os.X_OK):
        return
    own = "give that user a folder of its own for the bundle, and name it in bundle_file"
    fix = f"run this as the agent's user; if this is that user, {own}"
    detail = f"{folder} cannot be written by this user, so no new certificate could be saved"
    raise CheckFailed(detail, _KUBERNETES if _DATA in folder.parts else fix)


def prove_folder(folder: Path) -> None:
    """Write a probe to ``folder`` and remove it. Raises ``CheckFailed``."""
    probe = folder / ".qanat-probe"
    try:
        write_private(probe, bytes(_PROBE_BYTES))
        remove_interrupted(probe)
    except OSError as error:
        raise cannot_write(folder, error) from None


def _make(folder: Path, *, private: bool) -> None:
    if private:
        make_private_folder(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)


def cannot_write(folder: Path, error: OSError) -> CheckFailed:
    """Return the failure for ``error`` in ``folder``, with the fix for its error number."""
    fix = _FIXES.get(error.errno or 0, "repair that, or name another place with --config")
    if _DATA in folder.parts:
        fix = _KUBERNETES
    return CheckFailed(f"{folder} cannot be written: {error.strerror}", fix.format(folder=folder))


def find_bundle(files: Files) -> Bundle | None:
    """Return the node's bundle; None without a file. Raises ``CheckFailed`` for any other content."""
    if not os.path.lexists(files.bundle):
        return None
    fix = f"move {files.bundle} away if it is not needed, and run this command again"
    try:
        bundle = read_bundle(files.bundle)
    except BundleError as error:
        raise CheckFailed(str(error), fix) from None
    if bundle.identity.role is not Role.NODE:
        raise CheckFailed(f"{files.bundle} is the bundle of {bundle.identity}, not of a node", fix)
    return bundle


def unfinished_key(files: Files) -> bytes | None:
    """Return the key (PEM) of an interrupted join; None without a usable one."""
    try:
        key = read_private(files.unfinished)
        load_signing_key(key)
    except (OSError, KeyFileError, ValueError):
        return None
    return key


def request_to_send(files: Files, identity: SpiffeId) -> NewRequest:
    """Return a request with the key of an interrupted join, else with a new key, which is stored first.

    Raises ``CheckFailed`` if the key cannot be stored.
    """
    key = unfinished_key(files)
    if key is not None:
        return request_for(load_signing_key(key), identity)
    request = make_request(identity)
    try:
        remove_interrupted(files.unfinished)
        write_private(files.unfinished, request.key_pem)
        chown_like(files.unfinished.parent, files.unfinished)
    except OSError as error:
        raise cannot_write(files.unfinished.parent, error) from None
    return request


def save_bundle(file: Path, bundle: Bundle) -> None:
    """Write the bundle whole or not at all. If root writes it, the folder's owner gets the file.

    The caller holds the folder: see ``held``. Raises ``CheckFailed``.
    """
    file = place_of_bundle(file)
    try:
        remove_staged(file)  # a staged file contains a key
        write_bundle(file, bundle)
        chown_like(file.parent, file)
    except OSError as error:
        raise cannot_write(file.parent, error) from None
