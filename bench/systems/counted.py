"""`python -m bench.systems.counted SOCKET PROGRAM ARGUMENTS`: run a program that counts its own calls.

`SOCKET` is the path of a unix socket on which the program answers. The line `start` resets the count. The
line `read` returns the count: a JSON object from function to two numbers, its calls and its resumes after a
wait. A function is named `file:line name`, with the path of its file below the root of the repository. Only
functions of the product are counted, in all threads.
"""

from __future__ import annotations

import dis
import json
import runpy
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tunnel_core", "tunnel_server", "tunnel_agent", "tunnel_client", "certs")

# Python 3.12 and newer run a comprehension inside its function; Python 3.11 calls it.
_INLINED = {"<listcomp>", "<setcomp>", "<dictcomp>"}


class CallCounter:
    """Calls of the product's functions, and resumes of its coroutines and generators.

    A wait inside ten coroutines that await each other counts as ten resumes.
    """

    def __init__(self) -> None:
        self._calls: Counter[CodeType] = Counter()
        self._resumes: Counter[CodeType] = Counter()
        self._beginnings: dict[CodeType, int | None] = {}
        self._is_counting = False

    def start(self) -> None:
        """Reset the counts, and count."""
        self._calls, self._resumes = Counter(), Counter()
        self._is_counting = True

    def read(self) -> dict[str, tuple[int, int]]:
        """Return calls and resumes by function since the last ``start``."""
        calls, resumes = self._calls.copy(), self._resumes.copy()
        return {_name_of(code): (calls[code], resumes[code]) for code in calls.keys() | resumes.keys()}

    def watch(self) -> None:
        """Watch this thread and all threads that start later."""
        if sys.version_info >= (3, 12):
            self._watch_by_monitoring()
        else:
            threading.setprofile(self._on_profile)
            sys.setprofile(self._on_profile)

    def _on_profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if not self._is_counting or event != "call":
            return
        code = frame.f_code
        beginning = self._beginning_of(code)
        if beginning is not None:
            counts = self._calls if frame.f_lasti <= beginning else self._resumes
            counts[code] += 1

    if sys.version_info >= (3, 12):

        def _watch_by_monitoring(self) -> None:
            monitoring = sys.monitoring
            tool, events = monitoring.PROFILER_ID, monitoring.events
            monitoring.use_tool_id(tool, "qanat-bench")
            monitoring.register_callback(tool, events.PY_START, self._on_start)
            monitoring.register_callback(tool, events.PY_RESUME, self._on_resume)
            monitoring.set_events(tool, events.PY_START | events.PY_RESUME)

        def _on_start(self, code: CodeType, _offset: int) -> object:
            return self._note(self._calls, code)

        def _on_resume(self, code: CodeType, _offset: int) -> object:
            return self._note(self._resumes, code)

        def _note(self, counts: Counter[CodeType], code: CodeType) -> object:
            if self._beginning_of(code) is None:
                return sys.monitoring.DISABLE
            if self._is_counting:
                counts[code] += 1
            return None

    def _beginning_of(self, code: CodeType) -> int | None:
        """Return the offset at which a call of the function begins; None if the function is not counted."""
        try:
            return self._beginnings[code]
        except KeyError:
            beginning = self._beginnings[code] = _beginning_of(code) if _is_ours(code) else None
            return beginning


def _beginning_of(code: CodeType) -> int:
    return next(step.offset for step in dis.get_instructions(code) if step.opname == "RESUME")


def _is_ours(code: CodeType) -> bool:
    if code.co_name in _INLINED or not code.co_filename.startswith(f"{ROOT}/"):
        return False
    return Path(code.co_filename).relative_to(ROOT).parts[0] in PACKAGES


def _name_of(code: CodeType) -> str:
    return f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_firstlineno} {code.co_qualname}"


def _serve(listener: socket.socket, counter: CallCounter) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            if line.strip() == "start":
                counter.start()
                answer = "{}"
            else:
                answer = json.dumps(counter.read())
            lines.write(f"{answer}\n")
            lines.flush()


def main() -> None:
    """Run the program that the arguments name."""
    path = sys.argv[1]
    del sys.argv[:2]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    counter = CallCounter()
    # The thread starts before the watch, so that Python 3.11 does not watch it.
    threading.Thread(target=_serve, args=(listener, counter), daemon=True).start()
    counter.watch()
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
