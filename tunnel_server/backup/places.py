"""Places to which a restore may write. No I/O.

A backup names the places of its files, and so does the configuration in it. An attacker who can alter the
backup can alter both. So a place is accepted only if this machine or the caller names it: the usual folders,
the files in the existing configuration, and ``--place``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunnel_server.backup.archive import BadBackup, Manifest


class UnknownPlaces(BadBackup):
    """The backup names places outside of this installation. ``needed`` are the places to allow."""

    def __init__(self, unknown: list[Path], needed: list[Path]) -> None:
        super().__init__(f"the backup names places outside of this installation: {unknown[0]}")
        self.unknown = unknown
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Installation:
    """Places that a restore may write: ``folders`` with all files in them, and single ``files``."""

    folders: frozenset[Path]
    files: frozenset[Path]

    def has(self, place: Path) -> bool:
        """Whether a file at ``place`` belongs to the installation.

        Hidden files do not belong to it. A data folder may be a home folder, and shells run some of its
        hidden files.
        """
        return place in self.files or any(
            folder in place.parents and not _is_hidden(place.relative_to(folder)) for folder in self.folders
        )

    def has_folder(self, place: Path) -> bool:
        """Whether ``place`` may be the data folder."""
        return place in self.folders or (place not in self.files and self.has(place))


def require_known(manifest: Manifest, installation: Installation) -> None:
    """Raise ``UnknownPlaces`` for a backup that names a place outside of the installation."""
    data_dir, config = Path(manifest.data_dir), Path(manifest.config_file)
    folders = [] if installation.has_folder(data_dir) else [data_dir]
    places = [config, *(Path(member.path) for member in manifest.members)]
    files = list(dict.fromkeys(place for place in places if not installation.has(place)))
    if not folders and not files:
        return
    allowed = Installation(installation.folders | {data_dir}, installation.files)
    needed = [*folders, *(place for place in files if not allowed.has(place))]
    raise UnknownPlaces([*folders, *files], needed)


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
