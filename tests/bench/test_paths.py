"""The counts of calls: exact for a program that is known, and there for each path of the product."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

from bench.paths import PATHS, PROGRAMS, STEPS, count_paths
from bench.processes import ROOT
from bench.systems import counted

_CALLS = 7
_PROGRAM = f"""
from tunnel_core.names import join_host_port

print("ready", flush=True)
input()
for _ in range({_CALLS}):
    join_host_port("localhost", 22)
print("done", flush=True)
input()
"""


def test_each_call_of_the_product_is_counted_once_and_no_other(tmp_path: Path) -> None:
    program, path = tmp_path / "program.py", tmp_path / "socket"
    program.write_text(_PROGRAM)
    argv = [sys.executable, "-m", counted.__name__, str(path), str(program)]
    with (
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child,  # noqa: S603
        socket.socket(socket.AF_UNIX) as sock,
    ):
        assert child.stdin and child.stdout and child.stdout.readline() == "ready\n"
        sock.connect(str(path))
        with sock.makefile("rw") as lines:
            assert _ask(lines, "start") == {}
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            found = _ask(lines, "read")
            child.stdin.close()
    [(name, count)] = found.items()
    assert name.startswith("tunnel_core/names.py:") and name.endswith(" join_host_port")
    assert count == [_CALLS, 0]


def _ask(lines: IO[str], command: str) -> dict[str, list[int]]:
    lines.write(f"{command}\n")
    lines.flush()
    answer: dict[str, list[int]] = json.loads(lines.readline())
    return answer


def test_each_path_of_the_product_has_calls_in_both_programs(tmp_path: Path) -> None:
    counts = count_paths(tmp_path / "product", 1, warm_up=0)
    assert set(counts) == set(PATHS)
    for path, [both] in counts.items():
        for process in PROGRAMS:
            assert both[process].calls > both[process].files > 0, (path, process)
    for step in STEPS:
        for process in PROGRAMS:
            effect, settled = (counts[f"{step}_tcp{end}"][0][process] for end in ("", "_acked"))
            assert settled.functions.keys() >= effect.functions.keys()
            assert settled.calls >= effect.calls, (step, process)
    assert counts["open_tcp"][0]["server"].resumes > 0
