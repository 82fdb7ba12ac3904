"""The backup file: a plain tar whose first member, ``manifest.json``, says what the others are.

Each other member has a number for a name; the manifest has its place on the disk, its mode and its
SHA-256. So nothing in the file decides where bytes go but one checked list.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from certs.files import PRIVATE, place_new, sync_folder

MANIFEST = "manifest.json"
_VERSION = 1
_CHUNK_BYTES = 1024 * 1024
_MAX_MANIFEST_BYTES = 1024 * 1024


class BadBackup(Exception):  # noqa: N818 - what it is
    """The file is no backup that can be used. The text says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file: where it belongs, its permission bits, and what it must hash to."""

    path: str
    mode: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """``made`` is ISO 8601; ``config_file`` and ``data_dir`` are places, as those of the members."""

    made: str
    data_dir: str
    config_file: str
    members: tuple[Member, ...]


def write_archive(target: Path, made: str, data_dir: Path, config: Path, sources: Sequence[Source]) -> None:
    """Writes ``target`` with mode 0600, whole or not at all. Raises ``FileExistsError`` or ``OSError``."""
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            manifest = Manifest(made, str(data_dir), str(config), tuple(map(_member, sources)))
            _write(file, manifest, sources)
            file.flush()
            os.fsync(file.fileno())
        place_new(staged, target)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(target.parent)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to put in: where its bytes are now, and where they belong."""

    file: Path
    belongs: Path


def _member(source: Source) -> Member:
    with source.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Member(str(source.belongs), os.fstat(file.fileno()).st_mode & 0o777, digest)


def _write(file: IO[bytes], manifest: Manifest, sources: Sequence[Source]) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        text = json.dumps({"version": _VERSION, **asdict(manifest)}, indent=2).encode()
        head = tarfile.TarInfo(MANIFEST)
        head.size, head.mode = len(text), PRIVATE
        archive.addfile(head, io.BytesIO(text))
        for number, source in enumerate(sources):
            with source.file.open("rb") as content:
                info = tarfile.TarInfo(str(number))
                info.size, info.mode = os.fstat(content.fileno()).st_size, PRIVATE
                archive.addfile(info, content)


def read_manifest(file: Path) -> Manifest:
    """What a backup says it holds. Raises ``BadBackup`` or ``OSError``."""
    try:
        with tarfile.open(file, "r:") as archive:
            content = archive.extractfile(MANIFEST)
            if content is None:
                raise BadBackup(f"{file} is no backup: its manifest is no file")
            return _parse(file, content.read(_MAX_MANIFEST_BYTES))
    except (tarfile.TarError, KeyError) as error:
        raise BadBackup(f"{file} is no backup: {error}") from None


def _parse(file: Path, text: bytes) -> Manifest:
    try:
        read: Any = json.loads(text)
        if read["version"] != _VERSION:
            raise BadBackup(f"{file} was made by a newer version of qanat-server")
        members = tuple(Member(str(one["path"]), int(one["mode"]), one["sha256"]) for one in read["members"])
        manifest = Manifest(read["made"], read["data_dir"], read["config_file"], members)
    except (ValueError, KeyError, TypeError) as error:
        raise BadBackup(f"{file} is no backup that can be read: {error!r}"[:300]) from None
    for place in (manifest.data_dir, manifest.config_file, *(one.path for one in members)):
        if not isinstance(place, str) or not Path(place).is_absolute() or ".." in Path(place).parts:
            raise BadBackup(f"{file} names a place that cannot be: {str(place)[:200]!r}")
    return manifest


def extract(file: Path, manifest: Manifest, folder: Path) -> list[Path]:
    """Puts the members into ``folder`` under their numbers, checked. Raises ``BadBackup`` or ``OSError``."""
    extracted = []
    try:
        with tarfile.open(file, "r:") as archive:
            for number, member in enumerate(manifest.members):
                content = archive.extractfile(str(number))
                if content is None:
                    raise BadBackup(f"{file} is damaged: member {number} is no file")
                place = folder / str(number)
                _extract(content, place, member, file)
                extracted.append(place)
    except (tarfile.TarError, KeyError) as error:
        raise BadBackup(f"{file} is damaged: {error}") from None
    return extracted


def _extract(content: IO[bytes], place: Path, member: Member, file: Path) -> None:
    digest = hashlib.sha256()
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
    with os.fdopen(descriptor, "wb") as target:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fchmod(target.fileno(), member.mode & 0o777)
        os.fsync(target.fileno())
    if digest.hexdigest() != member.sha256:
        raise BadBackup(f"{file} is damaged: {member.path} in it is not what it was")
