"""Kept errors keep their type, their text and their causes, and no frame."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from tests.support.fakes.leftovers import uncollected
from tunnel_core.kept_errors import without_frames

__all__ = ["uncollected"]


class Keeper:
    """An object that keeps an error of its own method."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        try:
            fail()
        except Exception as error:
            self.error = without_frames(error)


def plain() -> None:
    raise ValueError("plain")


def from_a_cause() -> None:
    try:
        plain()
    except ValueError as cause:
        raise OSError("caused") from cause


def from_two_causes() -> None:
    try:
        from_a_cause()
    except OSError as cause:
        raise RuntimeError("caused twice") from cause


def within_a_handler() -> None:
    try:
        plain()
    except ValueError:
        raise OSError("in a handler")  # noqa: B904 - the context is the subject


def grouped() -> None:
    errors = []
    for fail in (plain, from_a_cause):
        try:
            fail()
        except Exception as error:
            errors.append(error)
    raise ExceptionGroup("several", errors)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("fail", [plain, from_a_cause, from_two_causes, within_a_handler, grouped])
def test_a_keeper_is_freed_without_the_collector(fail: Callable[[], None]) -> None:
    keeper = Keeper(fail)
    reference = weakref.ref(keeper)
    del keeper
    assert reference() is None
    assert not gc.isenabled()


def test_an_error_may_be_its_own_cause() -> None:
    error = ValueError("circular")
    error.__cause__ = error
    assert without_frames(error) is error


def test_type_text_and_causes_stay() -> None:
    error = Keeper(from_two_causes).error
    assert isinstance(error, RuntimeError) and str(error) == "caused twice"
    assert isinstance(error.__cause__, OSError) and isinstance(error.__cause__.__cause__, ValueError)


def test_the_traceback_of_a_handled_error_stays() -> None:
    try:
        plain()
    except ValueError as handled:
        Keeper(from_a_cause)  # its errors have the handled one as their context
        assert handled.__traceback__ is not None
