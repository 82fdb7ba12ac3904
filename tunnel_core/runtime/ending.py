"""What ends a command that runs until it is stopped: signals, and an output without a reader."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import trio

_LOOK_SECONDS = 1.0
_ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_STANDARD = (0, 1, 2)
STANDARD_OUTPUT = 1


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM and SIGHUP, without those that the caller of this program ignores.

    ``nohup`` ignores SIGHUP, and a shell without job control ignores SIGINT for what it starts with ``&``.
    """
    return tuple(number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN)


def exit_code_of(number: int) -> int:
    """Return the exit code of a command that a signal ended. Ctrl-C is its ordinary end: 0."""
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


async def wait_writable(descriptor: int) -> None:
    """Return when ``descriptor`` takes a line without blocking: a pipe or a terminal whose reader goes on.

    At once for what never waits for a reader (files), and for what cannot be asked. A cancelled wait leaves
    nothing behind.
    """
    with contextlib.suppress(OSError):
        await trio.lowlevel.wait_writable(descriptor)


async def wait_hung_up(descriptor: int) -> None:
    """Return when nothing reads ``descriptor`` any more. Looks once a second, because epoll refuses files."""
    while not is_hung_up(descriptor):  # noqa: ASYNC110 - there is no event for it
        await trio.sleep(_LOOK_SECONDS)
