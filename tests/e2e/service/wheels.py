"""Wheels of this tree with other versions in them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.support.processes import tools
from tests.support.processes.processes import run

ROOT = Path(__file__).parents[3]
OLD, NEW = "0.1.0", "99.0.0"


def build_wheel(version: str, folder: Path) -> Path:
    """A wheel of this tree, as ``pip wheel`` makes it, with another version in it."""
    tree = folder / f"tree-{version}"
    listed = run(tools.path_of("git"), "-C", str(ROOT), "ls-files", "-co", "--exclude-standard")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "bench/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for file, key in (("pyproject.toml", "version"), ("tunnel_core/version.py", "__version__")):
        text, count = re.subn(
            rf'^{key} = ".*"$', f'{key} = "{version}"', (tree / file).read_text(), flags=re.MULTILINE
        )
        assert count == 1
        (tree / file).write_text(text)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", str(tree)]
    done = run(*pip, deadline_seconds=300)
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob(f"qanat-{version}-*.whl")
    return wheel
