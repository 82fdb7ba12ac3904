"""The backup file: a plain tar whose first member, ``manifest.json``, describes the others.

The name of each other member is a number. The manifest has its path, its mode and its SHA-256. So this one
checked list decides where bytes are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from certs.file_owner import as_owner
from certs.files import PRIVATE, PUBLIC, place_new, sync_folder

MANIFEST = "manifest.json"
_VERSION = 1
_CHUNK_BYTES = 1024 * 1024
_MAX_MANIFEST_BYTES = 1024 * 1024
_MAX_SMALL_BYTES = 1024 * 1024
"""Bytes of a file outside of the data folder: certificates, keys and the configuration."""
_MAX_MADE = 40
_READ_BY_OTHERS = 0o044
_UNDECODED = {chr(code) for code in range(0xDC80, 0xDD00)}
"""Characters with which Python represents names that are not UTF-8. A backup may have such names."""
_SECRET = b"PRIVATE KEY-----"


class BadBackup(Exception):  # noqa: N818 - what it is
    """The file is not a usable backup. The text has the reason."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a backup: its path, its permission bits and its SHA-256 in hex."""

    path: str
    mode: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of a backup. ``made`` is a time in ISO 8601; ``config_file`` and ``data_dir`` are paths."""

    made: str
    data_dir: str
    config_file: str
    members: tuple[Member, ...]


def write_archive(target: Path, made: str, data_dir: Path, config: Path, sources: Sequence[Source]) -> None:
    """Write ``target`` atomically with mode 0600. Raises ``FileExistsError`` or ``OSError``."""
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
    """A file for the archive: the path of its bytes, and the path to which a restore writes them."""

    file: Path
    belongs: Path


def _member(source: Source) -> Member:
    with _opened(source) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Member(str(source.belongs), os.fstat(file.fileno()).st_mode & 0o777, digest)


def _opened(source: Source) -> io.BufferedReader:
    """Open the file with the rights of its owner.

    Root must not follow another user's symbolic link, because a restore would give that user the file.
    """
    if source.file != source.belongs:  # A copy that this process has made.
        return source.file.open("rb")
    with as_owner(source.file):
        return source.file.open("rb")


def _write(file: IO[bytes], manifest: Manifest, sources: Sequence[Source]) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        text = json.dumps({"version": _VERSION, **asdict(manifest)}, indent=2).encode()
        head = tarfile.TarInfo(MANIFEST)
        head.size, head.mode = len(text), PRIVATE
        archive.addfile(head, io.BytesIO(text))
        for number, source in enumerate(sources):
            with _opened(source) as content:
                info = tarfile.TarInfo(str(number))
                info.size, info.mode = os.fstat(content.fileno()).st_size, PRIVATE
                archive.addfile(info, content)


@contextlib.contextmanager
def open_backup(file: Path) -> Iterator[Backup]:
    """Open a backup and read its manifest. Raises ``BadBackup`` or ``OSError``."""
    with file.open("rb") as stream, _errors(file):
        try:
            archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - closed with the stream
        except tarfile.TarError as error:
            raise BadBackup(f"{file} is not a backup: {error}") from None
        yield Backup(file, archive, _read_manifest(file, archive))


class Backup:
    """An open backup. It stays the same even if another file gets its path.

    So the restored files are those that the user has confirmed.
    """

    def __init__(self, file: Path, archive: tarfile.TarFile, manifest: Manifest) -> None:
        self.file = file
        self.manifest = manifest
        self._archive = archive

    def extract(self, folder: Path, within: Path) -> dict[Path, Path]:
        """Write the members that belong below ``within`` into ``folder``, named by number, and check hashes.

        Returns the written file for each path. Raises ``BadBackup`` or ``OSError``.
        """
        extracted = {}
        for number, member in enumerate(self.manifest.members):
            if within in Path(member.path).parents:
                place = folder / str(number)
                with _errors(self.file):
                    self._extract(number, member, place)
                extracted[Path(member.path)] = place
        return extracted

    def read(self, without: Path) -> dict[Path, Content]:
        """Read the members that do not belong below ``without``, and check hashes. Raises ``BadBackup``."""
        read = {}
        for number, member in enumerate(self.manifest.members):
            if without not in Path(member.path).parents:
                with _errors(self.file):
                    data = self._content(number).read(_MAX_SMALL_BYTES + 1)
                if len(data) > _MAX_SMALL_BYTES:
                    raise BadBackup(f"{self.file}: its member {member.path} is too large")
                self._compare(member, hashlib.sha256(data).hexdigest())
                read[Path(member.path)] = Content(data, _mode_of(member, is_secret=_SECRET in data))
        return read

    def _extract(self, number: int, member: Member, place: Path) -> None:
        digest, content, is_secret = hashlib.sha256(), self._content(number), False
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
        with os.fdopen(descriptor, "wb") as target:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
                is_secret |= _SECRET in chunk
                target.write(chunk)
            target.flush()
            os.fchmod(target.fileno(), _mode_of(member, is_secret=is_secret))
            os.fsync(target.fileno())
        self._compare(member, digest.hexdigest())

    def _content(self, number: int) -> IO[bytes]:
        content = self._archive.extractfile(str(number))
        if content is None:
            raise BadBackup(f"{self.file} is damaged: member {number} is not a file")
        return content

    def _compare(self, member: Member, digest: str) -> None:
        if digest != member.sha256:
            raise BadBackup(f"{self.file} is damaged: its member {member.path} was changed")


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes of a file, and its permission bits."""

    data: bytes
    mode: int


def _mode_of(member: Member, *, is_secret: bool) -> int:
    """Return 0644 for a public file that others could read, and 0600 otherwise.

    The backup's own bits are not trusted.
    """
    return PUBLIC if member.mode & _READ_BY_OTHERS and not is_secret else PRIVATE


@contextlib.contextmanager
def _errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, KeyError) as error:
        raise BadBackup(f"{file} is damaged: {error}") from None


def _read_manifest(file: Path, archive: tarfile.TarFile) -> Manifest:
    try:
        content = archive.extractfile(MANIFEST)
        if content is None:
            raise BadBackup(f"{file} is not a backup: its manifest is not a file")
        return _parse(file, content.read(_MAX_MANIFEST_BYTES))
    except (tarfile.TarError, KeyError) as error:
        raise BadBackup(f"{file} is not a backup: {error}") from None


def _parse(file: Path, text: bytes) -> Manifest:
    try:
        read: Any = json.loads(text)
        if read["version"] != _VERSION:
            raise BadBackup(f"{file} was made by a newer version of qanat-server")
        members = tuple(Member(str(it["path"]), int(it["mode"]), it["sha256"]) for it in read["members"])
        manifest = Manifest(str(read["made"]), str(read["data_dir"]), str(read["config_file"]), members)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadBackup(f"{file} is not a readable backup: {error!r}"[:300]) from None
    for place in (manifest.data_dir, manifest.config_file, *(member.path for member in members)):
        _require_place(file, place)
    _require_separate(file, [Path(member.path) for member in members])
    if not manifest.made.isprintable() or len(manifest.made) > _MAX_MADE:
        raise BadBackup(f"{file} is not a readable backup: it does not have its time of creation")
    return manifest


def _require_place(file: Path, place: str) -> None:
    path = Path(place)
    # Two spellings of one path would count as two paths. A control character could display another path.
    if not path.is_absolute() or ".." in path.parts or str(path) != place or not _is_shown_as_is(place):
        raise BadBackup(f"{file} names an invalid place: {place[:200]!r}")


def _is_shown_as_is(place: str) -> bool:
    return all(char.isprintable() or char in _UNDECODED for char in place)


def _require_separate(file: Path, places: list[Path]) -> None:
    """Raise ``BadBackup`` if two members have the same path, or if one is inside another."""
    seen = set(places)
    if len(seen) < len(places) or any(parent in seen for place in seen for parent in place.parents):
        raise BadBackup(f"{file} names a place twice")
