"""The authority on disk: one folder, whose state is in one small file.

The first generation is in the folder itself: ``root.pem``, ``root-key.pem``, ``issuing.pem`` and
``issuing-key.pem``. ``root-key.pem`` is needed only to sign another issuing certificate, so it may be moved
away. Later generations are in ``2/``, ``3/`` and so on, with the same file names. ``state.json`` names the
generations in use. Without it, only the first one is in use. So a folder of an earlier version is valid, and
no file is ever moved.

A change writes and syncs the new folder first, and then replaces ``state.json``. A crash in between leaves a
folder that no state names, and the next rotation removes it. Keys of past generations are kept until an
operator destroys them.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from certs.bundle import split_pem
from certs.ca import Authority, AuthorityError, NewAuthority
from certs.files import (
    KeyFileError,
    make_private_folder,
    read_private,
    read_public,
    sync_folder,
    write_private,
    write_public,
)
from certs.rotation import Generation, Rotation
from certs.validity import BACK_DATED
from certs.x509 import (
    Credential,
    describe,
    is_signed_by,
    key_fits,
    key_identifier_of,
    load_signing_key,
    pin_of,
)
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.text_files import NotPlainText

ROOT, ROOT_KEY = "root.pem", "root-key.pem"
ISSUING, ISSUING_KEY = "issuing.pem", "issuing-key.pem"
STATE = "state.json"
_FIRST = "."
_VERSION = 1


def load_authority(folder: Path) -> Authority:
    """Load the signing authority with all trusted roots. The root's key is not needed.

    Raises ``AuthorityError``.
    """
    try:
        return authority_of(folder, read_rotation(folder))
    except OSError as error:
        raise AuthorityError(f"{error.filename} cannot be read: {error.strerror}") from error
    except KeyFileError as error:
        raise AuthorityError(str(error)) from error
    except ValueError as error:
        raise AuthorityError(f"the authority in {folder} is damaged: {error}") from error


def authority_of(folder: Path, rotation: Rotation) -> Authority:
    """Load the signing authority of ``rotation``, which may be unwritten.

    Raises ``OSError``, ``KeyFileError`` or ``ValueError``.
    """
    place = folder / rotation.signer.folder
    issuing = Credential(_read_certificate(place / ISSUING), read_private(place / ISSUING_KEY))
    try:
        load_signing_key(issuing.key_pem)
    except (ValueError, TypeError):  # TypeError: the key has a password.
        raise ValueError(f"{place / ISSUING_KEY} has no readable private key (PEM)") from None
    return Authority(_trust_domain(issuing), issuing, roots_of(folder, rotation))


def roots_of(folder: Path, rotation: Rotation) -> bytes:
    """Return the trust bundle (PEM), the signing root first. Raises ``OSError`` or ``ValueError``."""
    return b"".join(read_root(folder, generation) for generation in rotation.trusted)


def read_root(folder: Path, generation: Generation) -> bytes:
    """Return a generation's root, PEM. Raises ``OSError`` or ``ValueError``."""
    file = folder / generation.folder / ROOT
    found = split_pem(_read_certificate(file))
    if len(found) != 1:
        raise ValueError(f"{file} has {len(found)} certificates and must have one")
    return found[0]


def read_issuing(folder: Path, generation: Generation) -> bytes:
    """Return a generation's issuing certificate, PEM. Raises ``OSError``, or ``ValueError`` with the file."""
    return _read_certificate(folder / generation.folder / ISSUING)


def save_new(new: NewAuthority, folder: Path) -> None:
    """Write a first generation. Raises ``FileExistsError`` if one of its files exists, and keeps it."""
    make_private_folder(folder)
    _write_generation(folder, new.root.certificate_pem, new.root.key_pem, new.authority.issuing)


def save_generation(
    folder: Path, rotation: Rotation, root_pem: bytes, root_key_pem: bytes | None, issuing: Credential
) -> Generation:
    """Write a further generation, which is in use only after ``write_rotation``.

    First remove the files of an interrupted rotation. Raises ``OSError``.
    """
    _remove_leftovers(folder, rotation)
    place = folder / str(_last_number(folder) + 1)
    make_private_folder(place)
    _write_generation(place, root_pem, root_key_pem, issuing)
    chown_like(folder, place, *place.iterdir())
    return Generation(place.name, pin_of(root_pem).hex(), datetime.datetime.now(datetime.UTC))


def read_rotation(folder: Path) -> Rotation:
    """Return the state of the authority. Raises ``OSError``, or ``ValueError`` for an invalid state."""
    try:
        text = (folder / STATE).read_bytes()
    except FileNotFoundError:
        root = _read_certificate(folder / ROOT)
        return Rotation((Generation(_FIRST, pin_of(root).hex(), describe(root).begins + BACK_DATED),))
    return _parse(text)


def write_rotation(folder: Path, rotation: Rotation) -> None:
    """Replace the state of the authority by ``rotation``, atomically. Raises ``OSError``."""
    write_public(folder / STATE, _format(rotation))
    chown_like(folder, folder / STATE)


def find_root_key(folder: Path, rotation: Rotation, key_file: Path | None = None) -> Credential:
    """Return the signing root with its key, from ``key_file`` or from the authority's folder.

    Raises ``AuthorityError`` if the key is missing, or belongs to another root.
    """
    root_pem = read_root(folder, rotation.signer)
    folders = [rotation.signer.folder, *reversed(rotation.past)]
    places = [key_file] if key_file else [folder / name / ROOT_KEY for name in folders]
    for place in places:
        credential = _root_with_key(root_pem, place)
        if credential is not None:
            return credential
    if key_file:
        raise AuthorityError(f"{key_file} is not the key of the root in {folder / rotation.signer.folder}")
    raise AuthorityError(
        f"the root's key is not in {folder}: copy it from its offline place, and name it with --root-key"
    )


def retired_keys(folder: Path) -> frozenset[bytes]:
    """Return the identifiers of issuing keys that lead to no trusted root any more.

    Raises ``OSError`` or ``ValueError``.
    """
    rotation = read_rotation(folder)
    trusted = {generation.pin for generation in rotation.generations}
    return frozenset(key for pin, key in _issuing_keys(folder, rotation) if pin not in trusted)


def issuing_keys(folder: Path, rotation: Rotation, pin: str) -> frozenset[bytes]:
    """Return the identifiers of issuing keys that lead to this root. Raises ``OSError`` or ``ValueError``."""
    return frozenset(key for found, key in _issuing_keys(folder, rotation) if found == pin)


def _issuing_keys(folder: Path, rotation: Rotation) -> Iterator[tuple[str, bytes]]:
    """Yield the pin of the root and the identifier of the issuing key for all generations, also past ones."""
    for name in (*(generation.folder for generation in rotation.generations), *rotation.past):
        root, issuing = (_read_certificate(folder / name / file) for file in (ROOT, ISSUING))
        yield pin_of(root).hex(), key_identifier_of(issuing)


def chown_like(like: Path, *paths: Path) -> None:
    """As root, give new files to the owner of ``like``.

    Otherwise the server, which runs as its own user, cannot read files that root created for it.
    """
    if os.geteuid() != 0:
        return
    owner = like.stat()
    for path in paths:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _root_with_key(root_pem: bytes, place: Path) -> Credential | None:
    try:
        credential = Credential(root_pem, read_private(place))
        return credential if key_fits(credential) else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuthorityError(f"{place} cannot be read: {error.strerror}") from error
    except (KeyFileError, ValueError) as error:
        raise AuthorityError(f"{place}: {error}") from error


def _write_generation(place: Path, root_pem: bytes, root_key_pem: bytes | None, issuing: Credential) -> None:
    if root_key_pem is not None:
        write_private(place / ROOT_KEY, root_key_pem, replace=False)
    write_public(place / ROOT, root_pem, replace=False)
    write_private(place / ISSUING_KEY, issuing.key_pem, replace=False)
    write_public(place / ISSUING, issuing.certificate_pem, replace=False)


def _remove_leftovers(folder: Path, rotation: Rotation) -> None:
    known = {*(generation.folder for generation in rotation.generations), *rotation.past}
    for place in _numbered(folder):
        if place.name not in known:
            shutil.rmtree(place)
    sync_folder(folder)


def _last_number(folder: Path) -> int:
    return max([1, *(int(place.name) for place in _numbered(folder))])


def _numbered(folder: Path) -> list[Path]:
    return [place for place in folder.iterdir() if place.name.isdecimal() and place.is_dir()]


def _format(rotation: Rotation) -> bytes:
    generations = [
        {"folder": generation.folder, "pin": generation.pin, "added": generation.added.isoformat()}
        for generation in rotation.generations
    ]
    state = {
        "version": _VERSION,
        "generations": generations,
        "signing": rotation.signing,
        "past": list(rotation.past),
    }
    return json.dumps(state, indent=2).encode() + b"\n"


def _parse(text: bytes) -> Rotation:
    try:
        state: Any = json.loads(text)
        if state["version"] != _VERSION:
            raise ValueError(f"{STATE} is of version {state['version']!r:.20}, newer than this program")
        generations = tuple(
            Generation(_folder(it["folder"]), str(it["pin"]), datetime.datetime.fromisoformat(it["added"]))
            for it in state["generations"]
        )
        return Rotation(generations, int(state["signing"]), tuple(map(_folder, state["past"])))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{STATE} cannot be read: {error!r}") from error


def _folder(name: object) -> str:
    if isinstance(name, str) and (name == _FIRST or name.isdecimal()):
        return name
    raise ValueError(f"{STATE} names an invalid folder: {name!r:.80}")


def _trust_domain(issuing: Credential) -> str:
    if not key_fits(issuing):
        raise ValueError("issuing-key.pem is not the key of issuing.pem")
    description = describe(issuing.certificate_pem)
    if not description.is_authority or len(description.uris) != 1:
        raise ValueError("issuing.pem is not the certificate of an authority that names its trust domain")
    domain = description.uris[0].removeprefix("spiffe://")
    return SpiffeId(domain, Role.SERVER, "any").trust_domain  # SpiffeId checks the form.


def generation_of(chain_pem: bytes, folder: Path, rotation: Rotation) -> Generation | None:
    """Return the generation to whose root a chain (leaf first) leads, or None.

    Raises ``OSError`` or ``ValueError``.
    """
    chain = split_pem(chain_pem)
    for generation in rotation.generations:
        if is_signed_by(chain, read_root(folder, generation)):
            return generation
    return None


def read_intermediates(folder: Path) -> bytes:
    """Return all issuing certificates of this folder (PEM), for peers that present a leaf without its chain.

    The result is empty without an authority. The certificates are not trusted by themselves, because their
    root must be trusted. Raises ``OSError``, or ``ValueError`` with the file.
    """
    if not folder.is_dir():
        return b""
    places = [place / ISSUING for place in (folder, *sorted(_numbered(folder)))]
    return b"".join(_read_certificate(file) for file in places if file.exists())


def _read_certificate(file: Path) -> bytes:
    """Return the certificate (PEM) in ``file``. Raises ``OSError``, or ``ValueError`` with the file."""
    try:
        pem = read_public(file)
        describe(pem)
    except NotPlainText as error:
        raise ValueError(f"{file} {error}") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return pem
