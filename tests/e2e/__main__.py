"""Runs the end-to-end suites: ``python -m tests.e2e [SUITE] [--long] [--packages] [pytest's own options]``.

A suite is a folder beside this file. Without one all run.
``--packages`` prints the Debian packages that this machine lacks, for ``apt-get install``, and runs nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.cluster import kube
from tests.support.processes import tools

_HERE = Path(__file__).parent
_FORMER = {"survive": "resilience", "link": "network", "images": "containers"}
"""Names that suites had before, which are understood too."""


def suites() -> list[str]:
    return sorted(folder.name for folder in _HERE.iterdir() if any(folder.glob("test_*.py")))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=[*suites(), *_FORMER])
    parser.add_argument("--long", action="store_true", help="more rounds and larger counts")
    parser.add_argument("--packages", action="store_true", help="print the missing Debian packages")
    chosen, rest = parser.parse_known_args(arguments)
    chosen.suite = _FORMER.get(chosen.suite, chosen.suite)
    if chosen.packages:
        sys.stdout.write(" ".join(tools.packages_of()) + "\n")
        return 0
    # SIGTERM ends the suites as Ctrl-C does: no namespace and no process is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kube.build_in_ci()
    os.environ[tools.CHOSEN] = chosen.suite or "all"
    os.environ[tools.LONG] = "1" if chosen.long else "0"
    kept = Path(tempfile.mkdtemp(prefix="qanat-e2e-"))
    folders = [str(_HERE / suite) for suite in ([chosen.suite] if chosen.suite else suites())]
    code = pytest.main(["-rs", "--durations=10", f"--basetemp={kept}", *rest, *folders])
    if code:
        sys.stdout.write(f"logs and configs are kept in {kept}\n")
    else:
        shutil.rmtree(kept)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
