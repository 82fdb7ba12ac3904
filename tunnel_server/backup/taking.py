"""Creation of a backup, whether the server runs or not. A backup does not block or change the server.

SQLite's backup function copies the database. The authority's state is read first. The folders that the state
names never change, so the copy is consistent even during a rotation.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from certs import authority_folder
from certs.file_owner import as_owner
from tunnel_core.humanize import as_iso
from tunnel_server.backup.archive import Source, write_archive
from tunnel_server.config import ServerConfig
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER
from tunnel_server.store.database import copy_database, open_reader
from tunnel_server.store.store import FILE


def take_backup(config: ServerConfig, config_file: Path, target: Path) -> list[Path]:
    """Write the backup, and return the paths of the files in it. Blocks.

    Raises ``FileExistsError`` if ``target`` exists, ``OSError``, ``StoreError``, and ``ValueError`` if the
    authority's state cannot be read.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        sources = [*_authority(config.data_dir / AUTHORITY_FOLDER, Path(scratch)), *_others(config)]
        sources += _database(config.data_dir / FILE, Path(scratch))
        sources.append(Source(config_file, config_file))
        now = as_iso(datetime.now(UTC))
        write_archive(target, now, config.data_dir, config_file, sources)
    return [source.belongs for source in sources]


def _authority(folder: Path, scratch: Path) -> list[Source]:
    if not folder.is_dir():
        return []  # Another authority issues the certificates.
    with as_owner(folder):
        rotation = authority_folder.read_rotation(folder)
        names = [*(generation.folder for generation in rotation.generations), *rotation.past]
        found = [file for name in names for file in sorted((folder / name).glob("*.pem"))]
    authority_folder.write_rotation(scratch, rotation)
    state = Source(scratch / authority_folder.STATE, folder / authority_folder.STATE)
    return [state, *(Source(file, file) for file in found)]


def _others(config: ServerConfig) -> list[Source]:
    return [Source(file, file) for file in config.credential_files]


def _database(file: Path, scratch: Path) -> list[Source]:
    if not os.path.lexists(file):
        return []  # The installation is older than the store.
    copy = scratch / FILE
    with as_owner(file):
        opened = open_reader(file)
    with contextlib.closing(opened) as reader:
        copy_database(reader, copy)
    return [Source(copy, file)]
