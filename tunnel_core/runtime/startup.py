"""The first moment of the three programs: what must come before their imports."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO


def prepare_process() -> None:
    """Give the process three descriptors, output that can show any text, and a quiet Ctrl-C.

    The command line takes Ctrl-C over when it begins; until then, while modules are loaded, it ends the
    process as it ends any other.
    """
    sys.stdin = sys.stdin or _fill(0, os.O_WRONLY, "r")
    sys.stdout = sys.stdout or _fill(1, os.O_RDONLY, "w")
    sys.stderr = sys.stderr or _fill(2, os.O_WRONLY, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are not always text
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _fill(descriptor: int, flags: int, mode: str) -> TextIO | None:
    """A standard stream that the caller closed, over /dev/null, so that no socket gets its number.

    Input and output are opened the wrong way round: to use them is an error, as it was. Standard error is
    opened to be written: a closed one means that no messages are wanted.
    """
    try:
        opened = os.open(os.devnull, flags)
    except OSError:
        return None  # a root without /dev/null
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    os.set_inheritable(descriptor, True)
    return open(descriptor, mode, closefd=False)  # type: ignore[return-value]


def settle_output() -> OSError | None:
    """Flush standard output and error; return why standard output could not be written.

    A stream that cannot be written is pointed at /dev/null, because the interpreter would else report the
    error at exit and change the exit code.
    """
    failure = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            failure = error if stream is sys.stdout else failure
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
    return failure


def maybe_health(find_file: Callable[[], Path], default: str) -> int | None:
    """The exit code of ``health``, answered here so that it waits for no import; None for all else.

    ``find_file`` finds the configuration unless ``--config`` names it; ``default`` is ``[ops] listen``.
    """
    if sys.argv[1:2] != ["health"]:
        return None
    from tunnel_core.runtime.health_probe import OpsEndpoint, Unhealthy, file_named, report

    try:
        named = file_named(sys.argv[2:])
    except ValueError:
        return None  # --help, or a mistake: the command line says more about it
    try:
        door = OpsEndpoint.find(named or find_file(), default, os.environ, is_named=named is not None)
    except Unhealthy as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"unhealthy: {error}\n")
        code = 1
    else:
        code = report(door)
    settle_output()
    return code


def exit_on_sigterm() -> None:
    """Lets SIGTERM end process 1 of a container before its own handler stands.

    The kernel spares process 1 the signals that it has no handler for, so a container that is stopped
    while it starts, or joins, would be killed only when the patience of its runtime ends. Whatever runs in
    that time survives a kill at any moment.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
