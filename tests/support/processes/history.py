"""Code of earlier commits, taken from the repository's history."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("certs", "tunnel_agent", "tunnel_client", "tunnel_core", "tunnel_server")
_FETCH_SECONDS = 60


def is_known(commit: str) -> bool:
    """Return whether the checkout has the commit. A checkout without history, or an archive, has none."""
    return shutil.which("git") is not None and _git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def fetch(commit: str) -> None:
    """Fetch the commit from the origin. The origin may not have it."""
    if shutil.which("git") is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            _git("fetch", "--quiet", "origin", commit)


def extract(commit: str, folder: Path, *paths: str) -> None:
    """Write ``paths`` of the commit below ``folder``. A path without a slash may lack in the commit."""
    listed = _git("ls-tree", "--name-only", commit)
    assert listed.returncode == 0, listed.stderr
    there = listed.stdout.decode().split("\n")
    archive = _git("archive", commit, *(path for path in paths if "/" in path or path in there))
    assert archive.returncode == 0, archive.stderr
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        # Python 3.11.2 of Debian 12 has no filters; this project made the archive.
        kwargs = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, **kwargs)  # type: ignore[arg-type]  # noqa: S202


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    argv = ["git", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, check=False, timeout=_FETCH_SECONDS)  # noqa: S603
