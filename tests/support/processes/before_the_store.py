"""The programs of the last commit before the server had a store, taken from the history and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.processes import history

COMMIT = "5cc11ab9cdb62b0681a5516d97b08a947f652f6a"
_ENTRY = "import sys; sys.path.insert(0, {folder!r}); from {package}.main import main; main()"
"""The entry without its console script, which needs a package that is no longer a dependency."""


def is_known() -> bool:
    """Return whether this checkout has the commit."""
    return history.is_known(COMMIT)


class Before:
    """The code of that commit, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        history.extract(COMMIT, folder, *history.PACKAGES)
        assert not (folder / "tunnel_server" / "store").exists()

    def command(self, package: str, *arguments: str) -> list[str]:
        """Return a command line of one of its programs."""
        entry = _ENTRY.format(folder=str(self.folder), package=package)
        return [sys.executable, "-P", "-c", entry, *arguments]

    def run(self, package: str, *arguments: str) -> str:
        ran = subprocess.run(  # noqa: S603
            self.command(package, *arguments), capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout
