"""Count the calls of Python functions that one byte and one connection take, in the server and in the agent.

`./dev bench paths` prints the counts. `python -m bench.paths PATH...` lists the functions of a path.

A path is a step in the life of a stream, with the entrance through which the user comes, `connect` over
mutual TLS or `tcp`:

* `open_tcp`: from the user's dial until the target has accepted, and in `open_connect` until the 200.
* `byte_out_tcp`, `byte_back_tcp`: one byte from the user to the target, or from the target to the user.
* `close_tcp`: from the user's close until both programs have removed the stream.

These counts end a few milliseconds after the last effect. A path with the suffix `_acked` also has the
acknowledgements, which come later. The load, which is both user and target, runs in this process. The server
and the agent are processes that count their calls (`bench/systems/counted.py`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import click

from bench.load import Dial, LoadError
from bench.systems import qanat

PROGRAMS = {"server": "qanat-server", "agent": "qanat-agent"}
ENTRANCES = ("connect", "tcp")
STEPS = ("open", "byte_out", "byte_back")
PATHS = tuple(
    f"{step}_{entrance}{end}" for end in ("", "_acked") for entrance in ENTRANCES for step in STEPS
) + tuple(f"close_{entrance}" for entrance in ENTRANCES)

_EFFECT_SECONDS = 0.005
"""Time after which both programs are idle again, shorter than the delay of an acknowledgement."""
_SETTLE_SECONDS = 0.1
"""Time longer than the delay of an acknowledgement."""
_WARM_UP = 3
"""Repetitions that are not counted."""
_WARM_UP_BYTES = 5
_DEADLINE_SECONDS = 20


@dataclass(frozen=True)
class Count:
    """Calls and resumes of one process by function, which is named `file:line name`."""

    functions: Mapping[str, tuple[int, int]]

    @property
    def calls(self) -> int:
        return sum(calls for calls, _ in self.functions.values())

    @property
    def resumes(self) -> int:
        return sum(resumes for _, resumes in self.functions.values())

    @property
    def files(self) -> int:
        return len({name.partition(":")[0] for name in self.functions})


Both: TypeAlias = Mapping[str, Count]
"""By process, `server` and `agent`."""


def count_paths(folder: Path, repetitions: int, *, warm_up: int = _WARM_UP) -> dict[str, list[Both]]:
    """Start a server and an agent in `folder`, and count each path `repetitions` times, in turn.

    Raises `BenchError` or `LoadError`.
    """
    counts: dict[str, list[Both]] = {path: [] for path in PATHS}
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        qanat.running({"sink": listener.getsockname()[1]}, folder, counted=True) as product,
        contextlib.ExitStack() as stack,
    ):
        listener.settimeout(_DEADLINE_SECONDS)
        sockets = [qanat.counting_socket(folder, program) for program in PROGRAMS.values()]
        meters = [stack.enter_context(_Meter(path)) for path in sockets]
        dials = {"connect": product.connect["sink"], "tcp": product.to["sink"]}
        for repetition in range(warm_up + repetitions):
            for entrance, dial in dials.items():
                for path, count in _count_connection(entrance, dial, listener, meters):
                    if repetition >= warm_up:
                        counts[path].append(count)
    _check(counts)
    return counts


def _check(counts: Mapping[str, Sequence[Both]]) -> None:
    for path, found in counts.items():
        for both in found:
            for process, count in both.items():
                if not count.calls:
                    raise LoadError(f"{path}: the {process} counted no call; is it installed with pip -e?")


class _Meter:
    """Client of the socket on which one program reports its calls."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(_DEADLINE_SECONDS)
        self._sock.connect(str(path))
        self._lines = self._sock.makefile("rw")

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._sock.close()

    def start(self) -> None:
        self._ask("start")

    def read(self) -> Count:
        return Count(json.loads(self._ask("read")))

    def _ask(self, command: str) -> str:
        self._lines.write(f"{command}\n")
        self._lines.flush()
        return self._lines.readline()


def _count_connection(
    entrance: str, dial: Dial, listener: socket.socket, meters: Sequence[_Meter]
) -> Iterator[tuple[str, Both]]:
    """Yield the counts of all paths of one connection, in their order."""
    effect_and_settled: list[Both] = []

    @contextlib.contextmanager
    def counting() -> Iterator[None]:
        for meter in meters:
            meter.start()
        yield
        time.sleep(_EFFECT_SECONDS)
        effect = [meter.read() for meter in meters]
        time.sleep(_SETTLE_SECONDS)
        settled = [meter.read() for meter in meters]
        effect_and_settled[:] = [dict(zip(PROGRAMS, counts, strict=True)) for counts in (effect, settled)]

    with counting():
        user = dial()
        target, _ = listener.accept()
    yield from zip((f"open_{entrance}", f"open_{entrance}_acked"), effect_and_settled, strict=True)
    with user, target:
        target.settimeout(_DEADLINE_SECONDS)
        for _ in range(_WARM_UP_BYTES):
            _carry_byte(user, target)
            _carry_byte(target, user)
        time.sleep(_SETTLE_SECONDS)
        for step, source, sink in (("byte_out", user, target), ("byte_back", target, user)):
            with counting():
                _carry_byte(source, sink)
            paths = (f"{step}_{entrance}", f"{step}_{entrance}_acked")
            yield from zip(paths, effect_and_settled, strict=True)
        with counting():
            user.close()
            _wait_end(target)
            target.close()
        yield f"close_{entrance}", effect_and_settled[1]


def _carry_byte(source: socket.socket, sink: socket.socket) -> None:
    source.sendall(b"q")
    if sink.recv(2) != b"q":
        raise LoadError("one byte was sent, and the target received more or none")


def _wait_end(sink: socket.socket) -> None:
    # The load closes TLS without close_notify, which the tunnel passes on as a reset.
    with contextlib.suppress(ConnectionResetError):
        if sink.recv(1):
            raise LoadError("a byte came after the end")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, metavar="PATH...", required=True, type=click.Choice(PATHS))
@click.option("--repetitions", default=5, show_default=True, type=click.IntRange(1))
def main(paths: Sequence[str], repetitions: int) -> None:
    """List the functions of each PATH, such as byte_out_tcp, in the server and in the agent.

    Each function has the number of its calls and the number of its resumes. The command shows the repetition
    with the median number of calls.
    """
    with tempfile.TemporaryDirectory(prefix="qanat-paths-") as folder:
        counts = count_paths(Path(folder) / "product", repetitions)
    for path in paths:
        for process in PROGRAMS:
            repeated = sorted((both[process] for both in counts[path]), key=lambda count: count.calls)
            _show(path, process, repeated[len(repeated) // 2])


def _show(path: str, process: str, count: Count) -> None:
    click.echo(f"{path}, {process}: {count.calls} calls, {count.resumes} resumes, {count.files} files")
    for name, (calls, resumes) in sorted(count.functions.items()):
        click.echo(f"{calls:>6}{resumes or '':>6}  {name}")


if __name__ == "__main__":
    main()
