"""A process that moves bulk does not fetch the same pages from the kernel again for each packet."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, resource
from tunnel_core.runtime.memory_tuning import tune_memory
tune_memory()
def move(): return [b"".join([b"x" * (512 << 10)] * 2) for _ in range(4)]
move()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50): move()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, gc.get_freeze_count())
"""
PAGES_MOVED = 50 * 4 * 256


def test_freed_pages_are_used_again() -> None:
    command = [sys.executable, "-c", PROGRAM]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - ours
    faults, frozen = map(int, out.split())
    assert faults < PAGES_MOVED / 10
    assert frozen > 1000
