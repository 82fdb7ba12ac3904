"""A process that moves bulk does not fetch the same pages from the kernel again for each packet."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


THREADED = """
import ctypes, threading
from tunnel_core.runtime.memory_return import find_trim
from tunnel_core.runtime.memory_tuning import tune_memory
tune_memory()
trim = find_trim()

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

def move(done):
    blocks = [b"x" * (1 << 20) for _ in range(24)]
    blocks.clear()
    done.set()
    end.wait()

start, end = resident(), threading.Event()
threads = []
for _ in range(3):
    done = threading.Event()
    threads.append(threading.Thread(target=move, args=(done,)))
    threads[-1].start()
    done.wait()
if trim is not None:
    trim()
left = resident() - start
end.set()
print(trim is not None, left)
"""


def test_memory_that_threads_freed_can_be_returned() -> None:
    """An arena for each thread would keep up to 16 MiB each, which ``malloc_trim`` does not return."""
    command = [sys.executable, "-c", THREADED]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603 - ours
    has_trim, left = out.split()
    if has_trim != "True":
        pytest.skip("this C library has no malloc_trim")
    assert int(left) < 8 << 10, "KiB"
