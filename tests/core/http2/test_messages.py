"""Messages from pieces of any size: their content, their errors, and the memory of an incomplete one."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.http2.frame_budget import FloodError, FrameBudget
from tunnel_core.http2.messages import Http2Error, MessageAssembler
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
