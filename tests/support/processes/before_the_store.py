"""The programs as they were before the server had a store: taken from the repository's history, and run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMMIT = "5cc11ab9cdb62b0681a5516d97b08a947f652f6a"
_PACKAGES = ("tunnel_core", "tunnel_server", "tunnel_agent", "tunnel_client", "certs")
_ENTRY = "import sys; sys.path.insert(0, {folder!r}); from {package}.main import main; main()"
"""Without its entry point, which asks for a package that is no dependency any more."""


def is_known() -> bool:
    """Whether this checkout has its history; one without, or an archive, does not."""
    git = shutil.which("git")
    return git is not None and _git("cat-file", "-e", f"{COMMIT}^{{commit}}").returncode == 0


class Before:
    """Its code, below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        archive = _git("archive", COMMIT, *_PACKAGES)
        assert archive.returncode == 0, archive.stderr
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            # Python 3.11.2, which is Debian 12's, has no filters; the archive is our own.
            kwargs = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, **kwargs)  # type: ignore[arg-type]  # noqa: S202
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


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)  # noqa: S603, S607
