"""Errors that an object keeps after their ``except`` block."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """Return ``error`` after removing its traceback, its context, and the same of its causes and its group.

    A traceback refers to a frame, and a frame to its callers with all their variables. If one of these
    variables leads to the object that keeps the error, all of them wait for the garbage collector. For each
    download that a user broke off, the causes alone kept 50 objects and up to 1 MiB of data. A context is
    not changed itself, because another task or a caller may still be handling it.
    """
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue  # an error may be its own cause
        seen.add(id(one))
        one.__traceback__ = one.__context__ = None
        if one.__cause__ is not None:
            pending.append(one.__cause__)
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
    return error
