"""Restore of a server from a backup.

1. Places outside of this installation are refused (``places``).
2. The backup is unpacked in the data folder and checked: hashes, the database, the authority.
3. Existing files are moved into ``before-restore-...`` in the data folder, and never removed.
4. The files are moved to their places. Files outside of the data folder come first, because their folder may
   have another owner. If a write there fails, the data folder is unchanged.

Root works here in folders of the server's user, with the rights of that user only. A compromised server may
have put symbolic links there (``certs.file_owner``). Files that belong outside of the data folder are never
written inside it.

A backup does not have revocations that were made later. If the old database is still readable, the restore
reports its newer revocations, because they have no effect any more. Tokens that were open are revoked,
because the backup does not show whether they were used later.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certs.authority_folder import chown_like, load_authority
from certs.ca import AuthorityError
from certs.file_owner import as_owner
from certs.files import PUBLIC, make_private_folder, sync_folder, write_private, write_public
from tunnel_server.backup import lost_access
from tunnel_server.backup.archive import Backup, BadBackup, Content, Manifest
from tunnel_server.backup.places import Installation, require_known
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER
from tunnel_server.store import revocations, tokens
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import StoreError, check_copy, failures, open_database, open_reader
from tunnel_server.store.lock import hold_store
from tunnel_server.store.store import FILE
from tunnel_server.store.transaction import Transaction

_KEPT = "before-restore-"
_STAGED = ".restore-"
_LOCK = "store.lock"


class FilesExist(Exception):  # noqa: N818 - what there is
    """Files exist already. ``paths`` names them; ``newer`` has revocations that only the old store has."""

    def __init__(self, paths: list[Path], newer: list[dict[str, object]]) -> None:
        super().__init__(paths, newer)
        self.paths = paths
        self.newer = newer


class RestoreFailed(Exception):  # noqa: N818 - what happened
    """A restore failed with ``error`` after old files were moved into the folder ``kept``."""

    def __init__(self, error: OSError, kept: Path) -> None:
        super().__init__(error, kept)
        self.error = error
        self.kept = kept


@dataclass(frozen=True, slots=True)
class Restored:
    """Result of a restore.

    ``newer`` has revocations that only the old store had, and ``lost`` commands for the other restrictions
    that only the old store had. ``kept`` is the folder of the old files, or None.
    ``is_before_grants``: the upgrade of the restored store writes grants.
    """

    manifest: Manifest
    newer: list[dict[str, object]]
    revoked_tokens: list[str]
    kept: Path | None
    lost: list[str]
    is_before_grants: bool


def restore_backup(backup: Backup, installation: Installation, *, replace: bool) -> Restored:
    """Restore all files of ``backup``. Blocks.

    Raises ``UnknownPlaces``, ``FilesExist`` for existing files without ``replace``, ``BadBackup``,
    ``StoreHeld`` while a server runs, ``StoreError``, ``OSError`` and ``RestoreFailed``. An interrupted
    restore can be repeated.
    """
    manifest = backup.manifest
    require_known(manifest, installation)
    data_dir = Path(manifest.data_dir)
    with as_owner(data_dir):
        make_private_folder(data_dir)
        with hold_store(data_dir), _staging(data_dir) as staged:
            inside, outside = backup.extract(staged, data_dir), backup.read(data_dir)
            _check(data_dir, inside, staged)
            newer = _newer_revocations(data_dir / FILE, inside.get(data_dir / FILE))
            is_before_grants = lost_access.is_before_grants(inside.get(data_dir / FILE))
            lost = lost_access.lost_restrictions(data_dir / FILE, inside.get(data_dir / FILE))
            existing, others = _existing(data_dir), [path for path in outside if _is_there(path)]
            if (existing or others) and not replace:
                raise FilesExist([*existing, *others], newer)
            kept = _make_kept(data_dir) if existing or others else None
            try:
                _write_outside(outside, others, kept)
                _move_inside(data_dir, inside, existing, kept)
            except OSError as error:
                if kept is None:
                    raise
                raise RestoreFailed(error, kept) from error
            revoked = _revoke_open_tokens(data_dir / FILE, manifest) if data_dir / FILE in inside else []
    return Restored(manifest, newer, revoked, kept, lost, is_before_grants)


@contextlib.contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    for left in data_dir.glob(f"{_STAGED}*"):
        shutil.rmtree(left, ignore_errors=True)  # A folder that an older version made as root stays.
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
        raise BadBackup(f"the authority in the backup is not usable: {error}") from None


def _newer_revocations(old: Path, new: Path | None) -> list[dict[str, object]]:
    """Return the revocations of the old store that the new store does not have.

    If the old store cannot be read, return none.
    """
    if not old.is_file():
        return []
    try:
        known = {_key(revocation) for revocation in (_revocations(new) if new else [])}
        return [revocation for revocation in _revocations(old) if _key(revocation) not in known]
    except (StoreError, ValueError):
        return []  # A damaged store is a usual reason for a restore.


def _revocations(file: Path) -> list[dict[str, object]]:
    with failures(file), contextlib.closing(open_reader(file)) as reader:
        return revocations.listed(reader)


def _key(revocation: dict[str, object]) -> tuple[object, ...]:
    return tuple(revocation[name] for name in ("number", "kind", "subject", "at"))


def _existing(data_dir: Path) -> list[Path]:
    return sorted(path for path in data_dir.iterdir() if path.name != _LOCK and not _is_restore_file(path))


def _is_restore_file(path: Path) -> bool:
    return path.name.startswith((_STAGED, _KEPT)) or path.is_socket()


def _is_there(path: Path) -> bool:
    with as_owner(path):
        return os.path.lexists(path)


def _make_kept(data_dir: Path) -> Path:
    kept = data_dir / f"{_KEPT}{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    kept.mkdir(mode=0o700)
    chown_like(data_dir, kept)
    return kept


def _write_outside(files: dict[Path, Content], existing: list[Path], kept: Path | None) -> None:
    if kept is not None:
        for path in existing:
            _keep_copy(path, _free_path(kept / path.name))
    for path, content in files.items():
        if path in existing:
            with as_owner(path):
                path.unlink()
        _write(path, content)


def _move_inside(data_dir: Path, files: dict[Path, Path], existing: list[Path], kept: Path | None) -> None:
    if kept is not None:
        for path in existing:
            shutil.move(path, _free_path(kept / path.name))
    sync_folder(data_dir)
    for place, source in files.items():
        _move_into_place(source, place)


def _keep_copy(path: Path, copy: Path) -> None:
    """Copy a file whose folder has another owner. That owner may not write to the folder of the copy."""
    with as_owner(path):
        target = path.readlink() if path.is_symlink() else None
        data = b"" if target else path.read_bytes()
    if target:
        copy.symlink_to(target)
    else:
        write_private(copy, data, replace=False)


def _free_path(path: Path) -> Path:
    """Return ``path``, or ``path`` with a number if a file has that path."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(choice for choice in itertools.chain([path], numbered) if not os.path.lexists(choice))


def _write(place: Path, content: Content) -> None:
    with as_owner(place):
        _make_folders(place.parent, mode=0o755)
        write = write_public if content.mode == PUBLIC else write_private
        write(place, content.data, replace=False)
        chown_like(place.parent, place)


def _make_folders(folder: Path, *, mode: int) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=mode)
        chown_like(path.parent, path)


def _move_into_place(source: Path, place: Path) -> None:
    _make_folders(place.parent, mode=0o700)
    shutil.move(source, place)
    chown_like(place.parent, place)
    sync_folder(place.parent)


def _revoke_open_tokens(database: Path, manifest: Manifest) -> list[str]:
    """Revoke the open tokens of a restored store, and record the restore. Return the ids of the tokens."""
    by = f"uid-{os.getuid()}"
    with contextlib.closing(open_database(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        transaction = Transaction(connection, int(time.time() * 1000), must_audit=True)
        listed = tokens.listed(connection, transaction.now)
        still_open = [
            token["id"] for token in listed if token["state"] == "open" or token["revoked_with_node"]
        ]
        for token_id in still_open:
            tokens.revoke(transaction, token_id, by)
        detail = f"the backup of {manifest.made}"
        transaction.audit(AuditLine(AuditKind.RESTORED, done_by=by, detail=detail))
        connection.execute("COMMIT")
    return still_open
