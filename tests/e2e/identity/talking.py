"""Helper programs that are queried line by line, on a processor of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.net.namespaces import Namespace
from tests.support.processes import tools

_ROOT = Path(__file__).parents[3]


def pinned(pid: int, processor: int) -> None:
    """Moves a running process, with all its threads, to one processor."""
    done = subprocess.run(  # noqa: S603 - our own command
        [tools.path_of("taskset"), "--all-tasks", "--cpu-list", "--pid", str(processor), str(pid)],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


class Talking:
    """``ask`` sends a line and waits for the answer."""

    def __init__(self, module: str, *arguments: str, log: Path, namespace: Namespace, processor: int) -> None:
        pin = [tools.path_of("taskset"), "--cpu-list", str(processor)]
        self._log = log
        with log.open("wb") as errors:
            self._child = subprocess.Popen(  # noqa: S603 - our own command
                namespace.argv([*pin, sys.executable, "-m", module, *arguments]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
            )

    def ask(self, line: str, *, deadline_seconds: float) -> dict[str, Any]:
        assert self._child.stdin
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        return self.answer(deadline_seconds=deadline_seconds)

    def answer(self, *, deadline_seconds: float) -> dict[str, Any]:
        """Return the next line of the program. It is killed if the line does not come in time."""
        assert self._child.stdout
        late = threading.Timer(deadline_seconds, self._child.kill)
        late.start()
        try:
            line = self._child.stdout.readline()
        finally:
            late.cancel()
        assert line, f"it ended, or was too slow: {self._log.read_text()[-4000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    @contextlib.contextmanager
    def running(self) -> Iterator[Talking]:
        try:
            yield self
        finally:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe:
                    pipe.close()
