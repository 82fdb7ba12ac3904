"""Every parser that reads before authentication, fuzzed: a minute each, ten in the long form.

The short form repeats known inputs, so that only a change makes it fail. The long form searches for new ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECONDS, LONG_SECONDS = 60, 600
_ROOT = Path(__file__).parents[3]


def test_fuzzing_finds_no_failure(long: bool) -> None:
    chance = ["--seconds", str(LONG_SECONDS)] if long else ["--seconds", str(SECONDS), "--seed", "1"]
    argv = [sys.executable, "-m", "tests.fuzz", *chance]
    ran = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True)  # noqa: S603 - our own command
    sys.stdout.write(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
