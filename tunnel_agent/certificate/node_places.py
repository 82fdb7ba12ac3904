"""Paths of a node's files. ``node_files`` writes them, and loads the library of certificates for that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of a node's files, which need not exist yet."""

    config: Path
    bundle: Path

    @property
    def unfinished(self) -> Path:
        """Key of a join under way. A repeated join with the same key is the same use of the token."""
        return self.bundle.with_name(f"{self.bundle.name}.joining")
