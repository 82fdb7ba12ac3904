"""Fuzz the parsers of strangers' bytes: ``python -m tests.fuzz [TARGET ...] [--seconds N] [--seed N]``.

Targets run side by side, one process each, as many as there are processors. The program prints an
input that finds a fault, and the file that keeps the input. It uses atheris (coverage-guided, ``pip install
atheris``) if it can be imported, else hypothesis.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import corpus

_ROOT = Path(__file__).parents[2]
_NAMES = sorted(folder.name for folder in corpus.FOLDER.iterdir())
_LATE_SECONDS = 120.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(_NAMES)}; none: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs again; 0: others each time")
    parser.add_argument(
        "--keep", action="store_true", help="keep the smallest new inputs in tests/fuzz/corpus"
    )
    chosen = parser.parse_args(arguments)
    if strange := set(chosen.targets) - set(_NAMES):
        parser.error(f"no target {', '.join(strange)}; there is {', '.join(_NAMES)}")
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        runs = [pool.submit(_fuzz, name, chosen) for name in chosen.targets or _NAMES]
        found = [not run.result() for run in runs]
        return int(any(found))


def _fuzz(target: str, chosen: argparse.Namespace) -> bool:
    """Fuzz one target. Returns whether no fault was found; a run with a fault leaves its folder."""
    folder = Path(tempfile.mkdtemp(prefix=f"qanat-fuzz-{target}-"))
    found = folder / "found"
    found.mkdir()
    numbers = str(chosen.seconds), str(chosen.seed)
    argv = [sys.executable, "-m", "tests.fuzz.engine", target, *numbers, str(folder)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # a part of what a seed repeats
    start = time.monotonic()
    with (folder / "log").open("wb") as log:
        ran = subprocess.run(  # noqa: S603 - our own command
            argv,
            cwd=_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=chosen.seconds + _LATE_SECONDS,
        )
    output = (folder / "log").read_text(errors="replace").splitlines()
    _say(f"{target}: {'nothing found' if ran.returncode == 0 else 'FOUND, see ' + str(folder)}")
    _say(f"  {output[-1] if output else ''} ({time.monotonic() - start:.0f} s)")
    if ran.returncode:
        _say("\n".join(output[-40:]))
        return False
    if chosen.keep:
        _say(f"  {corpus.keep(target, [file.read_bytes() for file in found.iterdir()])} inputs kept")
    shutil.rmtree(folder)
    return True


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
