"""Ends of a command that runs until it is stopped: signals, and an output without a reader."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import trio

_CHECK_SECONDS = 1.0
_ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_STANDARD = (0, 1, 2)
STANDARD_OUTPUT = 1


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return SIGINT, SIGTERM and SIGHUP, without those that this process has inherited as ignored.

    ``nohup`` ignores SIGHUP. A shell without job control ignores SIGINT for a command that ends in ``&``.
    """
    return tuple(number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN)


def exit_code_of(number: int) -> int:
    """Return the exit code of a command that a signal ended; 0 for Ctrl-C, its usual end."""
    return 0 if number == signal.SIGINT else 128 + number


def has_terminal() -> bool:
    """Whether any of the standard descriptors is an open terminal."""
    return any(map(os.isatty, _STANDARD))


def is_hung_up(descriptor: int) -> bool:
    """Whether ``descriptor`` has lost its reader: a pipe without a reader, or a closed terminal.

    False for files, and for descriptors that poll does not support.
    """
    poll = select.poll()
    try:
        poll.register(descriptor, 0)  # errors and hang-ups are always reported
        events = poll.poll(0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in events)


async def wait_writable(descriptor: int) -> None:
    """Wait until a write of one line to ``descriptor`` does not block, because its reader reads.

    Return at once for files, which have no reader, and for descriptors that epoll does not support. A
    cancelled wait leaves nothing behind.
    """
    with contextlib.suppress(OSError):
        await trio.lowlevel.wait_writable(descriptor)


async def wait_hung_up(descriptor: int) -> None:
    """Wait until ``descriptor`` has lost its reader. Check once a second, because epoll refuses files."""
    while not is_hung_up(descriptor):  # noqa: ASYNC110 - there is no event for it
        await trio.sleep(_CHECK_SECONDS)
