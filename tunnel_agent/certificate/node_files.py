"""A joining node's files: held by one join at a time, proven to be writable, the key kept to the end."""

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
"""More than all that is written; so a disk that is nearly full is noticed before the token is spent."""
_CURES = {
    errno.EROFS: "make that file system writable, or name another place with --config",
    errno.ENOSPC: "make room there: `df -h {folder}`",
    errno.EDQUOT: "make room there: the quota is used up",
    errno.EACCES: "run it as root, or as the user who owns {folder}; or name another place with --config",
    errno.EPERM: "run it as root, or as the user who owns {folder}; or name another place with --config",
}


_KUBERNETES = (
    "it is a volume that Kubernetes keeps, a Secret for example, so no renewal can be saved there: let an"
    " initContainer copy the bundle to a volume of the pod's own, and name that in bundle_file; or put a new"
    " bundle into the Secret before this one ends, and the agent takes it up"
)
_DATA = "..data"
"""The link in each Secret and ConfigMap volume that leads to its files."""
_SINGLE_FILE = "mount the folder that holds it, not the file (docker -v, Kubernetes subPath)"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """One join or renewal at a time in a folder, as long as the block lasts. Raises ``CheckFailed``."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_folder(folder, wait=False))
        except BlockingIOError:
            raise CheckFailed(
                f"another join or renewal is at work in {folder}",
                "wait for it, or end it, and run this again",
            ) from None
        except OSError as error:
            raise cannot_write(folder, error) from None
        yield


def place_of_bundle(file: Path) -> Path:
    """Where new content of the bundle ``file`` belongs: see ``real_place``. Raises ``CheckFailed``."""
    try:
        return real_place(file)
    except OSError as error:
        raise cannot_write(file.parent, error) from None


def prove_writable(files: Files) -> str:
    """Makes the folders, and writes and removes something in each that will be written in.

    A configuration that is there stays as it is. Raises ``CheckFailed``.
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
    """Proves that ``file`` can be replaced, before that costs a certificate. Raises ``CheckFailed``."""
    require_replaceable(file)
    prove_folder(place_of_bundle(file).parent)


def require_replaceable(file: Path) -> None:
    """Raises ``CheckFailed`` for a file that is mounted by itself: no other can take its name."""
    if is_mount_point(file):
        raise CheckFailed(f"{file} is mounted as a single file, so it cannot be replaced", _SINGLE_FILE)


def require_writable(folder: Path) -> None:
    """Asks the system, and writes nothing. Raises ``CheckFailed`` if no new bundle could be saved there."""
    if os.access(folder, os.W_OK | os.X_OK):
        return
    own = "give that user a folder of its own for the bundle, and name it in bundle_file"
    fix = f"run this as the agent's user; if this is that user, {own}"
    detail = f"{folder} cannot be written by this user, so no new certificate could be saved"
    raise CheckFailed(detail, _KUBERNETES if _DATA in folder.parts else fix)


def prove_folder(folder: Path) -> None:
    """Writes something there and removes it. Raises ``CheckFailed``."""
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
    fix = _CURES.get(error.errno or 0, "set that right, or name another place with --config")
    if _DATA in folder.parts:
        fix = _KUBERNETES
    return CheckFailed(f"{folder} cannot be written: {error.strerror}", fix.format(folder=folder))


def find_bundle(files: Files) -> Bundle | None:
    """The node's bundle, None if there is none. Raises ``CheckFailed`` for what is no node's bundle."""
    if not os.path.lexists(files.bundle):
        return None
    fix = f"move {files.bundle} away if nobody needs it, and run this again"
    try:
        bundle = read_bundle(files.bundle)
    except BundleError as error:
        raise CheckFailed(str(error), fix) from None
    if bundle.identity.role is not Role.NODE:
        raise CheckFailed(f"{files.bundle} is the bundle of {bundle.identity}, not of a node", fix)
    return bundle


def unfinished_key(files: Files) -> bytes | None:
    """The key of a join that was broken off; None if there is none that can be used."""
    try:
        key = read_private(files.unfinished)
        load_signing_key(key)
    except (OSError, KeyFileError, ValueError):
        return None
    return key


def request_to_send(files: Files, identity: SpiffeId) -> NewRequest:
    """With the key of the join that was broken off, else with a new one, which is on the disk then."""
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
    """Whole or not at all, for the owner of its folder if root writes it. Raises ``CheckFailed``.

    Nobody else may be writing it: see ``held``.
    """
    file = place_of_bundle(file)
    try:
        remove_staged(file)  # it has a key in it
        write_bundle(file, bundle)
        chown_like(file.parent, file)
    except OSError as error:
        raise cannot_write(file.parent, error) from None
