"""Runs the end-to-end suites: ``python -m tests.e2e [SUITE] [--long] [--packages] [pytest's own options]``.

A suite is a folder beside this file. Without one all run: those that measure alone, the others two at a time.
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
from tests.support.processes.suites import Suite, run_all

_HERE = Path(__file__).parent
_FORMER = {"survive": "resilience", "link": "network", "images": "containers"}
"""Names that suites had before, which are understood too."""
_BED = "the Kubernetes bed"
_BESIDE = (
    Suite("identity", alone=False, shares=_BED),
    Suite("containers", alone=False),
    Suite("network", alone=False, shares=_BED),
    Suite("commands", alone=False, niced=True),
    Suite("fuzz", alone=False, niced=True),
    Suite("papers", alone=False),
    Suite("service", alone=False),
    Suite("compat", alone=False),
)
"""Suites that run beside others, the longest first. The rest measure latencies or load all processors."""


def suites() -> list[str]:
    return sorted(folder.name for folder in _HERE.iterdir() if any(folder.glob("test_*.py")))


def in_order() -> list[Suite]:
    """Return all suites, those that run alone first."""
    beside = {one.name for one in _BESIDE}
    return [*(Suite(name) for name in suites() if name not in beside), *_BESIDE]


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
    if not chosen.suite:
        again = [sys.executable, "-m", "tests.e2e"]
        return run_all(in_order(), lambda suite: [*again, suite.name, *arguments], is_narrowed=bool(rest))
    os.environ[tools.CHOSEN] = chosen.suite
    os.environ[tools.LONG] = "1" if chosen.long else "0"
    kept = Path(tempfile.mkdtemp(prefix="qanat-e2e-"))
    code = pytest.main(["-rs", "--durations=10", f"--basetemp={kept}", *rest, str(_HERE / chosen.suite)])
    if code:
        sys.stdout.write(f"logs and configs are kept in {kept}\n")
    else:
        shutil.rmtree(kept)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
