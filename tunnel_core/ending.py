"""What ends a command that runs until it is told to: signals, and an output that nothing reads any more."""

from __future__ import annotations

import os
import select
import signal
import sys

import trio

_LOOK_SECONDS = 1.0
_ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_STANDARD = (0, 1, 2)


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM and SIGHUP, without those that the caller of this program ignores.

    ``nohup`` ignores SIGHUP, and a shell without job control ignores SIGINT for what it starts with ``&``.
    """
    return tuple(number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN)


def exit_code_of(number: int) -> int:
    """The exit code of a command that a signal ended: Ctrl-C is how a person ends it, and no failure."""
    return 0 if number == signal.SIGINT else 128 + number


def has_terminal() -> bool:
    """Whether any of the standard descriptors is a terminal that still answers."""
    return any(map(os.isatty, _STANDARD))


def is_hung_up(descriptor: int) -> bool:
    """Whether nothing reads ``descriptor`` any more: a pipe without a reader, a closed terminal.

    False for files, and for what cannot be asked.
    """
    poll = select.poll()
    try:
        poll.register(descriptor, 0)  # errors and hang-ups are always reported
        events = poll.poll(0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in events)


async def wait_hung_up(descriptor: int) -> None:
    """Return when nothing reads ``descriptor`` any more. Looks once a second, because epoll refuses files."""
    while not is_hung_up(descriptor):  # noqa: ASYNC110 - no event tells it
        await trio.sleep(_LOOK_SECONDS)


def forget_output() -> None:
    """Point standard output and error to nowhere, where they are broken.

    Else Python tries once more to write what it holds when it ends, and complains about that.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(null, stream.fileno())
    os.close(null)
