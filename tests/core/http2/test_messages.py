"""Messages from pieces of any size: their content, their errors, and the memory of an incomplete one."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.http2.frame_budget import FloodError, FrameBudget
from tunnel_core.http2.messages import MIN_SPACE, Http2Error, MessageAssembler
from tunnel_core.limits import KIB, MIB

LARGE = 16 * KIB


def new_assembler(max_bytes: int = 4 * MIB) -> MessageAssembler:
    return MessageAssembler(max_bytes, FrameBudget(0.0))


def encode(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


def add(assembler: MessageAssembler, piece: bytes, read_bytes: int = 0) -> list[bytes]:
    messages: list[bytes] = []
    assembler.add(memoryview(piece), read_bytes or len(piece), 0.0, messages)
    return messages


@given(
    st.lists(st.sampled_from((0, 1, 4, 5, 6, 300, LARGE, 3 * LARGE)), max_size=6),
    st.lists(st.sampled_from((1, 4, 5, 6, 299, 4096, LARGE)), min_size=1),
    st.sampled_from((1, 2, 3)),
)
def test_pieces_of_any_size_and_share_of_their_read_give_the_same_messages(
    sizes: list[int], steps: list[int], share: int
) -> None:
    sent = [bytes([number]) * size for number, size in enumerate(sizes)]
    stream, assembler, at, got = b"".join(map(encode, sent)), new_assembler(), 0, []
    while at < len(stream):
        for step in steps:
            piece = stream[at : at + step]
            got += add(assembler, piece, share * len(piece))
            at += step
    assert got == sent
    assert all(type(message) is bytes for message in got)


@given(
    st.lists(st.sampled_from((1, 300, MIN_SPACE, 2 * MIN_SPACE, 5 * MIN_SPACE)), max_size=8),
    st.lists(st.sampled_from((1, 5, 4096, MIN_SPACE, 3 * MIN_SPACE)), min_size=1),
    st.lists(st.booleans(), min_size=1, max_size=7),
)
def test_lent_memory_and_pieces_give_the_same_messages(
    sizes: list[int], steps: list[int], lends: list[bool]
) -> None:
    sent = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    stream, assembler, at, count = b"".join(map(encode, sent)), new_assembler(), 0, 0
    got: list[bytes] = []
    while at < len(stream):
        step = min(max(steps[count % len(steps)], len(stream) // 1000), len(stream) - at)
        space = assembler.space(step) if lends[count % len(lends)] else None
        if space is None:
            assembler.add(memoryview(stream)[at : at + step], step, 0.0, got)
        else:
            with space:
                step = len(space)
                space[:] = stream[at : at + step]
            assembler.filled(step, got)
        at, count = at + step, count + 1
    assert got == sent
    assert all(type(message) is bytes for message in got)


def test_a_message_gets_its_memory_after_one_of_half_its_size() -> None:
    assembler, size = new_assembler(), MIN_SPACE
    add(assembler, encode(bytes(size))[:-1])
    assert assembler.space(size) is None
    add(assembler, b"\0")
    add(assembler, encode(bytes(2 * size))[:5])
    space = assembler.space(10 * size)
    assert space is not None
    assert len(space) == 2 * size
    space.release()
    add(assembler, bytes(2 * size))
    add(assembler, encode(bytes(4 * size + 1))[:5])
    assert assembler.space(size) is None


def test_a_prefix_is_checked_as_soon_as_it_is_complete() -> None:
    for prefix, text in ((b"\1\0\0\0\5", "compressed"), (b"\0\0\0\0\7", "larger than max")):
        assembler = new_assembler(6)
        assert add(assembler, prefix[:4]) == []
        with pytest.raises(Http2Error, match=text):
            add(assembler, prefix[4:])


def test_empty_messages_are_charged() -> None:
    with pytest.raises(FloodError):
        add(new_assembler(), encode(b"") * 1000)


@pytest.mark.parametrize("step", [1, 100, 4095, 4096, LARGE])
@pytest.mark.parametrize("share", [1, 2, 3, 100])
def test_an_incomplete_message_takes_about_twice_its_bytes_at_most(step: int, share: int) -> None:
    assembler, size = new_assembler(), 64 * KIB
    add(assembler, encode(bytes(size))[:5])
    tracemalloc.start()
    try:
        for _ in range(size // step - 1):
            assembler.add(memoryview(bytes(step * share))[:step], step * share, 0.0, [])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2.2 * size
