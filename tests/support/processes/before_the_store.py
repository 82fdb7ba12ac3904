"""The programs as they were before the server had a store: taken from the repository's history, and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.processes import history

COMMIT = "5cc11ab9cdb62b0681a5516d97b08a947f652f6a"
_ENTRY = "import sys; sys.path.insert(0, {folder!r}); from {package}.main import main; main()"
"""Without its entry point, which asks for a package that is no dependency any more."""


def is_known() -> bool:
    """Return whether this checkout has the commit."""
    return history.is_known(COMMIT)


class Before:
    """Its code, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        history.extract(COMMIT, folder, *history.PACKAGES)
        assert not (folder / "tunnel_server" / "store").exists()

    def command(self, package: str, *arguments: str) -> list[str]:
        """A command line of one of its programs."""
        entry = _ENTRY.format(folder=str(self.folder), package=package)
        return [sys.executable, "-P", "-c", entry, *arguments]

    def run(self, package: str, *arguments: str) -> str:
        ran = subprocess.run(  # noqa: S603
            self.command(package, *arguments), capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout
