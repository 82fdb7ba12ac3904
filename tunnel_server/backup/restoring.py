"""Making a server again of a backup.

1. The backup is unpacked beside its place and checked: hashes, the database, the authority.
2. What is there already is moved into ``before-restore-...`` in the data folder, never removed.
3. The files are moved to their places.

What happened after the backup is not in it. Of the revocations among that, an old database that is there
still knows; they are told, since those who were shut out would be in again. Tokens that were open are
revoked: whether they were used since, nobody knows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certs.authority_folder import adopt, load_authority
from certs.ca import AuthorityError
from certs.files import make_private_folder, sync_folder
from tunnel_server.backup.archive import BadBackup, Manifest, extract, read_manifest
from tunnel_server.rotating import AUTHORITY_FOLDER
from tunnel_server.store import revocations, tokens
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.audit import Kind as AuditKind
from tunnel_server.store.database import StoreError, check_copy, failures, open_database, open_reader
from tunnel_server.store.lock import hold_store
from tunnel_server.store.store import FILE
from tunnel_server.store.transaction import Transaction

_KEPT = "before-restore-"
_STAGED = ".restore-"
_LOCK = "store.lock"


class InTheWay(Exception):  # noqa: N818 - what there is
    """Files are there already. ``paths`` names them, ``newer`` what an old store knows beyond the backup."""

    def __init__(self, paths: list[Path], newer: list[dict[str, object]]) -> None:
        super().__init__(paths, newer)
        self.paths = paths
        self.newer = newer


@dataclass(frozen=True, slots=True)
class Restored:
    """``newer`` are revocations that only the old store knew; ``kept`` is where the old files are."""

    manifest: Manifest
    newer: list[dict[str, object]]
    revoked_tokens: list[str]
    kept: Path | None


def restore_backup(file: Path, *, replace: bool) -> Restored:
    """Puts everything back where it was. Blocks.

    Raises ``InTheWay`` unless ``replace``, ``BadBackup``, ``StoreHeld`` while a server runs, ``StoreError``,
    ``OSError``. A restore that was interrupted is simply done again.
    """
    manifest = read_manifest(file)
    data_dir = Path(manifest.data_dir)
    make_private_folder(data_dir)
    with hold_store(data_dir), _staging(data_dir) as staged:
        files = dict(zip(extract(file, manifest, staged), manifest.members, strict=True))
        places = {Path(member.path): source for source, member in files.items()}
        _check(data_dir, places, staged)
        newer = _newer_revocations(data_dir / FILE, places.get(data_dir / FILE))
        existing = _existing(data_dir, places)
        if existing and not replace:
            raise InTheWay(existing, newer)
        kept = _move_away(data_dir, existing)
        for place, source in places.items():
            _put(source, place, data_dir)
        revoked = _after(data_dir / FILE, manifest) if data_dir / FILE in places else []
    return Restored(manifest, newer, revoked, kept)


@contextlib.contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    for left in data_dir.glob(f"{_STAGED}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=_STAGED) as folder:
        yield Path(folder)


def _check(data_dir: Path, places: dict[Path, Path], staged: Path) -> None:
    database = places.get(data_dir / FILE)
    if database is not None:
        check_copy(database)
    folder = data_dir / AUTHORITY_FOLDER
    authority = {place.relative_to(folder): at for place, at in places.items() if folder in place.parents}
    if not authority:
        return
    trial = staged / AUTHORITY_FOLDER
    for name, source in authority.items():
        (trial / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(source, trial / name)
    try:
        load_authority(trial)
    except AuthorityError as error:
        raise BadBackup(f"the authority in it cannot be used: {error}") from None


def _newer_revocations(old: Path, new: Path | None) -> list[dict[str, object]]:
    """Those in the old store, if it can still be read, that are not in the new one."""
    if not old.is_file():
        return []
    try:
        known = {_key(one) for one in (_revocations(new) if new else [])}
        return [one for one in _revocations(old) if _key(one) not in known]
    except (StoreError, ValueError):
        return []  # a damaged one is what a backup is for


def _revocations(file: Path) -> list[dict[str, object]]:
    with failures(file), contextlib.closing(open_reader(file)) as reader:
        return revocations.listed(reader)


def _key(one: dict[str, object]) -> tuple[object, ...]:
    return one["number"], one["kind"], one["subject"], one["at"]


def _existing(data_dir: Path, places: dict[Path, Path]) -> list[Path]:
    inside = [path for path in data_dir.iterdir() if path.name != _LOCK and not _is_ours(path)]
    outside = [path for path in places if data_dir not in path.parents and os.path.lexists(path)]
    return [*sorted(inside), *outside]


def _is_ours(path: Path) -> bool:
    return path.name.startswith((_STAGED, _KEPT)) or path.is_socket()


def _move_away(data_dir: Path, existing: list[Path]) -> Path | None:
    if not existing:
        return None
    kept = data_dir / f"{_KEPT}{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    kept.mkdir(mode=0o700)
    adopt(data_dir, kept)
    for path in existing:
        shutil.move(path, kept / path.name)
    sync_folder(data_dir)
    return kept


def _put(source: Path, place: Path, data_dir: Path) -> None:
    missing = [folder for folder in (place.parent, *place.parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700 if data_dir in (folder, *folder.parents) else 0o755)
        adopt(folder.parent, folder)
    shutil.move(source, place)
    adopt(place.parent, place)
    sync_folder(place.parent)


def _after(database: Path, manifest: Manifest) -> list[str]:
    """What has to be different in a store that was brought back. Returns the tokens that were revoked."""
    by = f"uid-{os.getuid()}"
    with contextlib.closing(open_database(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        transaction = Transaction(connection, int(time.time() * 1000), must_audit=True)
        listed = tokens.listed(connection, transaction.now)
        still_open = [one["id"] for one in listed if one["state"] == "open" or one["revoked_with_node"]]
        for token_id in still_open:
            tokens.revoke(transaction, token_id, by)
        detail = f"the backup of {manifest.made}"
        transaction.audit(AuditLine(AuditKind.RESTORED, done_by=by, detail=detail))
        connection.execute("COMMIT")
    return still_open
