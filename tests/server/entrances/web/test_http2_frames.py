"""Frames counted before they are parsed, however the bytes are divided."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.entrances.web.http2_client import PREFACE, frame
from tunnel_core.http2.frame_budget import FloodError
from tunnel_server.entrances.web.http2_frames import (
    CONTROL_FRAMES,
    CONTROL_FRAMES_PER_SECOND,
    HEAD_FRAMES,
    RESETS,
    WINDOW_FRAMES,
    FrameMeter,
)

PING = frame(6, 0, 0, bytes(8))
WINDOW = frame(8, 0, 0, bytes(4))
RESET = frame(3, 0, 1, bytes(4))
BOUNDS = {"control": (PING, CONTROL_FRAMES), "window": (WINDOW, WINDOW_FRAMES), "reset": (RESET, RESETS)}


def meter(max_head_bytes: int = 1000) -> FrameMeter:
    return FrameMeter(max_head_bytes, 0.0)


@pytest.mark.parametrize(("one", "most"), BOUNDS.values(), ids=BOUNDS)
def test_a_budget_holds_to_the_frame(one: bytes, most: int) -> None:
    counting = meter()
    counting.add(PREFACE + one * most, 0.0)
    with pytest.raises(FloodError):
        counting.add(one, 0.0)


@settings(max_examples=30)
@given(st.lists(st.integers(min_value=1, max_value=50), min_size=1))
def test_the_division_of_the_bytes_changes_nothing(sizes: list[int]) -> None:
    counting, data, at, number = meter(), PREFACE + RESET * RESETS, 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        counting.add(data[at : at + size], 0.0)
        at, number = at + size, number + 1
    with pytest.raises(FloodError):
        for place in range(len(RESET)):
            counting.add(RESET[place : place + 1], 0.0)


def test_time_refills_a_budget() -> None:
    counting = meter()
    counting.add(PREFACE + PING * CONTROL_FRAMES, 0.0)
    counting.add(PING * CONTROL_FRAMES_PER_SECOND, 1.0)
    with pytest.raises(FloodError):
        counting.add(PING, 1.0)


def test_data_and_requests_cost_nothing_and_empty_data_does() -> None:
    counting = meter()
    counting.add(PREFACE + (frame(1, 5, 1, b"x") + frame(0, 0, 1, b"x") + frame(0, 1, 1)) * 5000, 0.0)
    with pytest.raises(FloodError):
        counting.add(frame(0, 0, 1) * (CONTROL_FRAMES + 1), 0.0)


def test_resets_of_both_sides_share_one_budget() -> None:
    counting = meter()
    counting.add(PREFACE + RESET * (RESETS - 1), 0.0)
    counting.charge_reset(0.0)
    with pytest.raises(FloodError):
        counting.charge_reset(0.0)


def test_frames_sent_allow_windows() -> None:
    counting = meter()
    counting.add(PREFACE + WINDOW * WINDOW_FRAMES, 0.0)
    counting.note_sent(5)
    counting.add(WINDOW * 10, 0.0)
    with pytest.raises(FloodError):
        counting.add(WINDOW, 0.0)


def test_a_head_is_bounded_in_frames_and_bytes() -> None:
    begin, more = frame(1, 0, 1, b"x"), frame(9, 0, 1, b"x")
    meter().add(PREFACE + begin + more * (HEAD_FRAMES - 1) + begin + more, 0.0)
    with pytest.raises(FloodError):
        meter().add(PREFACE + begin + more * HEAD_FRAMES, 0.0)
    meter(1000).add(PREFACE + frame(1, 0, 1, bytes(600)) + frame(9, 0, 1, bytes(400)), 0.0)
    with pytest.raises(FloodError):
        meter(1000).add(PREFACE + frame(1, 0, 1, bytes(600)) + frame(9, 0, 1, bytes(401)), 0.0)


@given(st.binary())
def test_any_bytes_are_counted_or_refused(data: bytes) -> None:
    try:
        meter().add(PREFACE + data, 0.0)
    except FloodError:
        return
