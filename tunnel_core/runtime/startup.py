"""Start of the three programs: the steps that must come before their imports."""

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
    """Open missing standard descriptors, let the output show any text, and make Ctrl-C quiet.

    While modules are loaded, Ctrl-C ends the process without a traceback. Later the command line handles it.
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
    """Open /dev/null for a standard stream that the caller closed, so that no socket gets its number.

    Standard input is opened for writing and standard output for reading, so that their use stays an error.
    Standard error is opened for writing: its messages are discarded, because the caller has closed it.
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

    A stream that cannot be written is redirected to /dev/null. Otherwise the interpreter would report the
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
    """Run the command ``health`` and return its exit code; None for any other command line.

    ``health`` runs here, before the imports, because it must be fast. ``find_file`` returns the configuration
    if ``--config`` does not name one. ``default`` is the default of ``[ops] listen``.
    """
    if sys.argv[1:2] != ["health"]:
        return None
    from tunnel_core.runtime.health_probe import OpsEndpoint, Unhealthy, file_named, report

    try:
        named = file_named(sys.argv[2:])
    except ValueError:
        return None  # --help or a wrong argument, which the command line handles
    try:
        endpoint = OpsEndpoint.find(named or find_file(), default, os.environ, is_named=named is not None)
    except Unhealthy as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"unhealthy: {error}\n")
        code = 1
    else:
        code = report(endpoint)
    settle_output()
    return code


def exit_on_sigterm() -> None:
    """Let SIGTERM end process 1 of a container before the program has its own handler.

    The kernel ignores signals to process 1 that have no handler. So a container that is stopped while it
    starts or joins would run until its runtime's timeout kills it. The work in that time is safe to interrupt
    at any moment.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
