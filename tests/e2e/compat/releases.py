"""The programs of an earlier commit, installed from its wheel, beside those of the tree that is tested.

The wheel is built once for each commit and kept in the cache folder. Each run installs the wheel in a new
environment, which takes the dependencies from the environment that runs the tests.
"""

from __future__ import annotations

import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import history, tools
from tests.support.processes.history import PACKAGES
from tests.support.processes.processes import run

EARLIER_COMMIT = "81b1ef9da4e4915fe26d203ccf628b9e719eb14c"
"""The commit whose programs must work with those of this tree. No other place names it."""

_BUILT_WITH = ("pyproject.toml", "setup.py", "compiling", "README.md", "LICENSE")
_BUILD_SECONDS = 300


@dataclass(frozen=True)
class Release:
    """One version of the programs, with the interpreter that they run on."""

    name: str
    python: Path

    def program(self, name: str) -> str:
        """The path of ``qanat``, ``qanat-server`` or ``qanat-agent``."""
        return str(self.python.with_name(name))

    def package_folders(self) -> dict[str, Path]:
        """The folder of each package, as the programs import it."""
        code = f"import {', '.join(PACKAGES)}\nfor one in {', '.join(PACKAGES)}: print(*one.__path__)"
        # As a program does, the interpreter looks for nothing in the folder in which it is started.
        done = run(str(self.python), "-P", "-c", code)
        assert done.returncode == 0, done.stderr
        return dict(zip(PACKAGES, map(Path, done.stdout.splitlines()), strict=True))


def release_of_now() -> Release:
    """The programs of this tree, in the environment that runs the tests."""
    return Release("now", Path(sys.executable))


def install_earlier(folder: Path) -> Release:
    """Install the programs of the earlier commit in an environment below ``folder``.

    Skip the test if neither the commit nor its wheel is here, or if the wheel cannot be built.
    """
    wheel = _wheel()
    environment = folder / "environment"
    _must(sys.executable, "-m", "venv", "--without-pip", str(environment))
    release = Release("earlier", environment / "bin" / "python")
    _must(
        *(sys.executable, "-m", "pip", "--python", str(release.python), "install", "--quiet"),
        *("--disable-pip-version-check", "--no-index", "--no-deps", str(wheel)),
    )
    paths = _must(str(release.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # Python appends the folders that a .pth file names, and ignores .pth files inside of them. So the
    # packages of the wheel come first, and the editable installation of this tree is not seen.
    others = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (Path(paths.strip()) / "dependencies.pth").write_text("".join(f"{one}\n" for one in others))
    return release


def _wheel() -> Path:
    kept = tools.cache_folder() / "wheels" / EARLIER_COMMIT
    if not (found := list(kept.glob("*.whl"))):
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            built = _build_wheel(Path(folder))
            found = [built.replace(kept / built.name)]  # at once, so that no run sees half of it
    return found[0]


def _build_wheel(folder: Path) -> Path:
    tree = folder / "tree"
    _extract(tree)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", str(tree)]
    done = run(*pip, deadline_seconds=_BUILD_SECONDS)
    if done.returncode != 0:
        pytest.skip(f"the wheel of {EARLIER_COMMIT} cannot be built; is a package index there? {done.stderr}")
    [wheel] = folder.glob("*.whl")
    return wheel


def _extract(tree: Path) -> None:
    if not history.is_known(EARLIER_COMMIT):
        history.fetch(EARLIER_COMMIT)
    if not history.is_known(EARLIER_COMMIT):
        pytest.skip(f"{tools.SHALLOW}: needs its history, back to {EARLIER_COMMIT}: git fetch --unshallow")
    history.extract(EARLIER_COMMIT, tree, *PACKAGES, *_BUILT_WITH)


def _must(*argv: str) -> str:
    done = run(*argv)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout
