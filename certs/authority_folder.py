"""The authority on disk: one folder, in which the newest state is one small file.

The first generation lies in the folder itself, as every installation has it: ``root.pem``,
``root-key.pem`` (wanted only to sign another issuing certificate, so it may be moved away),
``issuing.pem`` and ``issuing-key.pem``. Later ones lie in ``2/``, ``3/`` and so on, with the same names.
``state.json`` says which of them count; without it, the first does. So a folder of an earlier version
is complete as it is, and nothing is ever moved.

Writing is: make the new folder, whole and on the disk, then replace ``state.json``. A crash before that
leaves a folder that no state names; the next rotation removes it. Keys of past generations are kept:
whether they may be destroyed is for people to say.
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
from certs.life import BACK_DATED
from certs.rotation import Generation, Rotation
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
    """The authority that issues now, with all roots that count. The root's key is not needed.

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
    """The same for a state that is not written yet. Raises ``OSError``, ``KeyFileError``, ``ValueError``."""
    place = folder / rotation.signer.folder
    issuing = Credential(_read_certificate(place / ISSUING), read_private(place / ISSUING_KEY))
    try:
        load_signing_key(issuing.key_pem)
    except (ValueError, TypeError):  # TypeError: it has a password
        raise ValueError(f"{place / ISSUING_KEY} holds no private key (PEM) that can be read") from None
    return Authority(_trust_domain(issuing), issuing, roots_of(folder, rotation))


def roots_of(folder: Path, rotation: Rotation) -> bytes:
    """The trust bundle (PEM): the root that signs first. Raises ``OSError`` or ``ValueError``."""
    return b"".join(read_root(folder, generation) for generation in rotation.trusted)


def read_root(folder: Path, generation: Generation) -> bytes:
    """A generation's root, PEM. Raises ``OSError`` or ``ValueError``."""
    file = folder / generation.folder / ROOT
    found = split_pem(_read_certificate(file))
    if len(found) != 1:
        raise ValueError(f"{file} holds {len(found)} certificates and must hold one")
    return found[0]


def read_issuing(folder: Path, generation: Generation) -> bytes:
    """A generation's issuing certificate, PEM. Raises ``OSError``, or ``ValueError`` that names the file."""
    return _read_certificate(folder / generation.folder / ISSUING)


def save_new(new: NewAuthority, folder: Path) -> None:
    """Writes a first generation; keeps any of its files that exist and raises ``FileExistsError``."""
    make_private_folder(folder)
    _write_generation(folder, new.root.certificate_pem, new.root.key_pem, new.authority.issuing)


def save_generation(
    folder: Path, rotation: Rotation, root_pem: bytes, root_key_pem: bytes | None, issuing: Credential
) -> Generation:
    """Puts a further generation on the disk, which counts only when ``write_rotation`` says so.

    Removes first what an interrupted one left behind. Raises ``OSError``.
    """
    _remove_leftovers(folder, rotation)
    place = folder / str(_last_number(folder) + 1)
    make_private_folder(place)
    _write_generation(place, root_pem, root_key_pem, issuing)
    chown_like(folder, place, *place.iterdir())
    return Generation(place.name, pin_of(root_pem).hex(), datetime.datetime.now(datetime.UTC))


def read_rotation(folder: Path) -> Rotation:
    """Where the authority stands. Raises ``OSError``, or ``ValueError`` for a state that cannot be."""
    try:
        text = (folder / STATE).read_bytes()
    except FileNotFoundError:
        root = _read_certificate(folder / ROOT)
        return Rotation((Generation(_FIRST, pin_of(root).hex(), describe(root).begins + BACK_DATED),))
    return _parse(text)


def write_rotation(folder: Path, rotation: Rotation) -> None:
    """Makes ``rotation`` the state, in one step. Raises ``OSError``."""
    write_public(folder / STATE, _format(rotation))
    chown_like(folder, folder / STATE)


def find_root_key(folder: Path, rotation: Rotation, brought: Path | None = None) -> Credential:
    """The signing root with its key, from the file that was brought back or from where it was made.

    Raises ``AuthorityError`` if there is none, or it is another's.
    """
    root_pem = read_root(folder, rotation.signer)
    folders = [rotation.signer.folder, *reversed(rotation.past)]
    places = [brought] if brought else [folder / name / ROOT_KEY for name in folders]
    for place in places:
        credential = _root_with_key(root_pem, place)
        if credential is not None:
            return credential
    if brought:
        raise AuthorityError(f"{brought} is not the key of the root in {folder / rotation.signer.folder}")
    raise AuthorityError(
        f"the root's key is not in {folder}: bring it back from where it is kept, and name it with --root-key"
    )


def retired_keys(folder: Path) -> frozenset[bytes]:
    """How certificates name the issuing keys of ours that lead to no root that counts any more.

    Raises ``OSError`` or ``ValueError``.
    """
    rotation = read_rotation(folder)
    trusted = {one.pin for one in rotation.generations}
    return frozenset(key for pin, key in _issuing_keys(folder, rotation) if pin not in trusted)


def issuing_keys(folder: Path, rotation: Rotation, pin: str) -> frozenset[bytes]:
    """How certificates name the issuing keys that lead to this root. Raises ``OSError`` or ``ValueError``."""
    return frozenset(key for found, key in _issuing_keys(folder, rotation) if found == pin)


def _issuing_keys(folder: Path, rotation: Rotation) -> Iterator[tuple[str, bytes]]:
    """The pin of the root, and the name of the key, for all that ever issued here."""
    for name in (*(one.folder for one in rotation.generations), *rotation.past):
        root, issuing = (_read_certificate(folder / name / file) for file in (ROOT, ISSUING))
        yield pin_of(root).hex(), key_identifier_of(issuing)


def chown_like(like: Path, *paths: Path) -> None:
    """Gives new files to the owner of ``like``, when root works on the folder of another user.

    Else the server, which has a user of its own, could not read what root made for it.
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
    known = {*(one.folder for one in rotation.generations), *rotation.past}
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
        {"folder": one.folder, "pin": one.pin, "added": one.added.isoformat()} for one in rotation.generations
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
            Generation(_folder(one["folder"]), str(one["pin"]), datetime.datetime.fromisoformat(one["added"]))
            for one in state["generations"]
        )
        return Rotation(generations, int(state["signing"]), tuple(map(_folder, state["past"])))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{STATE} cannot be read: {error!r}") from error


def _folder(name: object) -> str:
    if isinstance(name, str) and (name == _FIRST or name.isdecimal()):
        return name
    raise ValueError(f"{STATE} names a folder that cannot be: {name!r:.80}")


def _trust_domain(issuing: Credential) -> str:
    if not key_fits(issuing):
        raise ValueError("issuing.pem and issuing-key.pem do not belong together")
    description = describe(issuing.certificate_pem)
    if not description.is_authority or len(description.uris) != 1:
        raise ValueError("issuing.pem is not the certificate of an authority that names its trust domain")
    domain = description.uris[0].removeprefix("spiffe://")
    return SpiffeId(domain, Role.SERVER, "any").trust_domain  # for its check of the form


def generation_of(chain_pem: bytes, folder: Path, rotation: Rotation) -> Generation | None:
    """Whose root a chain (leaf first) leads to; None if to none of ours. Raises ``OSError``."""
    chain = split_pem(chain_pem)
    for generation in rotation.generations:
        if is_signed_by(chain, read_root(folder, generation)):
            return generation
    return None


def read_intermediates(folder: Path) -> bytes:
    """All issuing certificates that were ever made here (PEM), for peers that show a leaf alone.

    Empty if there is no authority. They prove nothing by themselves: their root must be trusted. Raises
    ``OSError``, or ``ValueError`` that names the file.
    """
    if not folder.is_dir():
        return b""
    places = [place / ISSUING for place in (folder, *sorted(_numbered(folder)))]
    return b"".join(_read_certificate(file) for file in places if file.exists())


def _read_certificate(file: Path) -> bytes:
    """The certificate (PEM) in ``file``. Raises ``OSError``, or ``ValueError`` that names the file."""
    try:
        pem = read_public(file)
        describe(pem)
    except NotPlainText as error:
        raise ValueError(f"{file} {error}") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    return pem
