"""Start child processes of the bench, wait until they are ready, and always stop them."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.places import HERE, Place

START_SECONDS = 20.0
STOP_SECONDS = 10.0
ROOT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """The bench cannot measure. Such a row makes the bench exit with an error."""


@contextmanager
def child(
    arguments: Sequence[str], log: Path, *, pipe: bool = False, place: Place = HERE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with its output in `log`; `pipe`: its standard output in a pipe. Stops it at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            place.argv(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


@contextmanager
def module(
    name: str, *arguments: str, log: Path, seconds: float = START_SECONDS, place: Place = HERE
) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """Run `python -m name`; yield the process and the value of the JSON line that it prints when ready.

    Raises `BenchError` if the line does not come within `seconds`.
    """
    with child([sys.executable, "-m", name, *arguments], log, pipe=True, place=place) as process:
        yield process, _read_ready_line(process, name, log, seconds)


def _read_ready_line(process: subprocess.Popen[bytes], name: str, log: Path, seconds: float) -> Any:
    if process.stdout is None:
        raise BenchError(f"{name} has no pipe")
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if ready else b""
    if not line:
        raise BenchError(f"{name} did not start; its log ends:\n{tail(log)}")
    return json.loads(line)


def wait_until(what: str, probe: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Call `probe` until it returns true. Raises `BenchError` with the end of `log` after 20 s."""
    deadline = time.monotonic() + START_SECONDS
    while not probe():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"not reached: {what}; the log ends:\n{tail(log)}")
        time.sleep(0.05)


def tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of `log`."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"


def answers(port: int, place: Place = HERE, host: str = "127.0.0.1") -> bool:
    """Whether a program accepts TCP connections on this port of the place."""
    with place.entered(), socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex((host, port)) == 0


def free_ports(count: int, place: Place = HERE) -> list[int]:
    """Return ports that were free on every address a moment ago, for programs that need a given port."""
    with place.entered():
        socks = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in socks]
    for sock in socks:
        sock.close()
    return ports
