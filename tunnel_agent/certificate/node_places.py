"""Where the files of a node are: apart from what writes them, which loads the library of certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Files:
    """The places of a node's files, which need not exist yet."""

    config: Path
    bundle: Path

    @property
    def unfinished(self) -> Path:
        """The key of a join under way: what makes it the same join when it is run again."""
        return self.bundle.with_name(f"{self.bundle.name}.joining")
