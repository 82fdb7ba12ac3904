"""HTTP/2 as the server implements it: calls, windows, faults, and the budget of frames, in virtual time."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from tests.rogues import http2
from tests.rogues.http2 import call_headers, frame
from tunnel_core.http2 import call as http2_call
from tunnel_core.http2 import frame_budget as http2_budget
from tunnel_core.http2.call import Http2Call
from tunnel_core.http2.frame_budget import FloodError
from tunnel_core.http2.messages import Http2Error
from tunnel_core.limits import MIB

PATH = b"/qanat.v1.Tunnel/Attach"
BEGIN = http2.PREFACE + frame(http2.SETTINGS)
CALL = BEGIN + frame(http2.HEADERS, http2.END_HEADERS, 1, call_headers())


def new_call(data: bytes = b"") -> Http2Call:
    call = Http2Call(PATH, 4 * MIB, 0.0)
    call.take_output()
    call.receive(data, 0.0)
    return call


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


def data(content: bytes, flags: int = 0) -> bytes:
    return frame(http2.DATA, flags, 1, content)


def frames(output: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while output:
        length, kind, flags = int.from_bytes(output[:3], "big"), output[3], output[4]
        yield kind, flags, int.from_bytes(output[5:9], "big"), output[9 : 9 + length]
        output = output[9 + length :]


def kinds(call: Http2Call) -> list[int]:
    return [kind for kind, *_ in frames(call.take_output())]


class TestReceiving:
    def test_pieces_of_any_size_give_the_same_messages(self) -> None:
        sent = [bytes([number]) * size for number, size in enumerate((0, 1, 300, 70_000, 5))]
        stream = b"".join(map(message, sent))
        wire = CALL + b"".join(data(stream[at : at + 1000]) for at in range(0, len(stream), 1000))
        for step in (1, 7, 1000, len(wire)):
            call, got = new_call(), []
            for at in range(0, len(wire), step):
                got += call.receive(wire[at : at + step], 0.0)
            assert got == sent

    def test_padding_is_left_out(self) -> None:
        padded = frame(http2.DATA, http2_call.PADDED, 1, b"\x03" + message(b"hello") + bytes(3))
        for step in (1, 1000):
            call, got = new_call(CALL), []
            for at in range(0, len(padded * 2), step):
                got += call.receive((padded * 2)[at : at + step], 0.0)
            assert got == [b"hello"] * 2

    def test_headers_in_several_frames(self) -> None:
        block = call_headers()
        call = new_call(BEGIN + frame(http2.HEADERS, 0, 1, block[:20]))
        assert not call.has_call
        call.receive(frame(http2.CONTINUATION, 0, 1, block[20:40]), 0.0)
        call.receive(frame(http2.CONTINUATION, http2.END_HEADERS, 1, block[40:]), 0.0)
        assert call.has_call

    def test_another_path_is_refused(self) -> None:
        call = new_call(
            BEGIN + frame(http2.HEADERS, http2.END_HEADERS, 1, call_headers(b"/grpc.health.v1.Health/Check"))
        )
        assert not call.has_call
        assert call.has_finished
        *_, (kind, flags, stream, block) = frames(call.take_output())
        assert (kind, flags, stream) == (http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1)
        assert (b"grpc-status", b"12") in Decoder().decode(block, raw=True)

    @given(block=st.binary(max_size=300))
    def test_a_block_that_cannot_be_decoded_is_a_fault(self, block: bytes) -> None:
        call = new_call(BEGIN)
        with contextlib.suppress(Http2Error):
            call.receive(frame(http2.HEADERS, http2.END_HEADERS, 1, block), 0.0)
        assert not call.has_call

    def test_a_long_value_named_again_and_again_is_a_fault(self) -> None:
        block = Encoder().encode([(b"x", b"v" * 3000)]) + b"\xbe" * 900
        with pytest.raises(Http2Error, match="cannot be decoded"):
            new_call(BEGIN + frame(http2.HEADERS, http2.END_HEADERS, 1, block))

    def test_the_ends_of_a_call(self) -> None:
        assert "closed" in (ended := new_call(CALL + data(b"", http2.END_STREAM)).ended), ended
        assert "cancelled" in new_call(CALL + frame(http2.RST_STREAM, 0, 1, bytes(4))).ended
        assert not new_call(CALL).ended

    def test_pings_and_settings_are_answered(self) -> None:
        call = new_call(CALL)
        assert kinds(call) == [http2.SETTINGS]
        call.receive(frame(http2.PING, 0, 0, b"12345678") + frame(http2.PING, http2.ACK, 0, b"87654321"), 0.0)
        assert list(frames(call.take_output())) == [(http2.PING, http2.ACK, 0, b"12345678")]

    def test_bytes_under_way_when_a_call_was_refused_are_no_fault(self) -> None:
        headers = call_headers(b"/grpc.health.v1.Health/Check")
        call = new_call(BEGIN + frame(http2.HEADERS, http2.END_HEADERS, 1, headers))
        assert call.has_finished
        in_flight = data(message(b"hello")) + frame(http2.WINDOW_UPDATE, 0, 1, b"\0\0\0\1")
        call.receive(in_flight + frame(http2.RST_STREAM, 0, 1, bytes(4)), 0.0)

    def test_a_few_messages_may_be_empty(self) -> None:
        call = new_call(CALL)
        assert call.receive(data(message(b"") * 10), 0.0) == [b""] * 10
        with pytest.raises(FloodError):
            call.receive(data(message(b"") * 1000), 0.0)

    def test_a_message_in_tiny_pieces_takes_its_own_room_alone(self) -> None:
        call, size = new_call(CALL), 50_000
        call.receive(data(message(bytes(size)))[: 9 + 5], 0.0)
        tracemalloc.start()
        try:
            for _ in range(size // 2 - 1):
                call.receive(b"\0" * 2, 0.0)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 1.5 * size
        assert call.receive(b"\0" * 2, 0.0) == [bytes(size)]

    def test_windows_are_refilled_as_messages_are_taken(self) -> None:
        call = new_call(CALL)
        call.take_output()
        piece = message(bytes(MIB))
        for _ in range(40):
            call.receive(data(piece), 0.0)
        opened = [int.from_bytes(payload, "big") for *_, payload in frames(call.take_output())]
        assert sum(opened) == 40 * len(piece) * 2  # the stream's and the connection's

    def test_a_held_window_bounds_what_may_come(self) -> None:
        call = new_call(CALL)
        call.holds_window = True
        with pytest.raises(Http2Error, match="window"):
            for _ in range(17):
                call.receive(data(message(bytes(MIB))), 0.0)


class TestSending:
    def test_a_message_waits_for_the_windows(self) -> None:
        call = new_call(CALL)
        call.take_output()
        call.send(bytes(200_000))
        assert not call.can_send
        sent = [payload for kind, *_, payload in frames(call.take_output()) if kind == http2.DATA]
        assert sum(map(len, sent)) == 65_535
        assert max(map(len, sent)) == 16_384
        update = struct.pack(">I", 1_000_000)
        call.receive(frame(http2.WINDOW_UPDATE, 0, 0, update), 0.0)
        assert not call.take_output()
        call.receive(frame(http2.WINDOW_UPDATE, 0, 1, update), 0.0)
        assert call.can_send
        sent += [payload for kind, *_, payload in frames(call.take_output())]
        assert b"".join(sent) == message(bytes(200_000))

    def test_settings_open_the_window_and_enlarge_frames(self) -> None:
        call = new_call(CALL)
        settings = struct.pack(">HIHI", 4, 1 << 20, 5, 1 << 20)
        update = frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20))
        call.receive(frame(http2.SETTINGS, 0, 0, settings) + update, 0.0)
        call.take_output()
        call.send(bytes(500_000))
        assert kinds(call) == [http2.HEADERS, http2.DATA]

    def test_headers_come_once_and_the_status_last(self) -> None:
        call = new_call(CALL)
        call.take_output()
        call.send(b"a")
        call.send(b"b")
        call.finish(0)
        call.finish(0)
        assert kinds(call) == [http2.HEADERS, http2.DATA, http2.DATA, http2.HEADERS]
        assert not call.can_send


FAULTS = {
    "no preface": b"GET / HTTP/1.1\r\n\r\n",
    "second call": CALL + frame(http2.HEADERS, http2.END_HEADERS, 3, call_headers()),
    "even stream": BEGIN + frame(http2.HEADERS, http2.END_HEADERS, 2, call_headers()),
    "data without a call": BEGIN + data(b"12345"),
    "data of another stream": CALL + frame(http2.DATA, 0, 3, b"12345"),
    "reset of another stream": CALL + frame(http2.RST_STREAM, 0, 3, bytes(4)),
    "window of another stream": CALL + frame(http2.WINDOW_UPDATE, 0, 3, b"\0\0\0\1"),
    "no increment": CALL + frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
    "window too large": CALL + frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
    "initial window too large": BEGIN + frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)),
    "frame size too small": BEGIN + frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 5, 100)),
    "settings cut off": BEGIN + frame(http2.SETTINGS, 0, 0, b"123"),
    "ping cut off": BEGIN + frame(http2.PING, 0, 0, b"123"),
    "push promise": CALL + frame(5, 0, 1, bytes(4)),
    "continuation alone": CALL + frame(http2.CONTINUATION, 0, 1, b""),
    "block broken off": BEGIN + frame(http2.HEADERS, 0, 1, b"") + frame(http2.PING, 0, 0, bytes(8)),
    "block too large": BEGIN + frame(http2.HEADERS, 0, 1, bytes(5000)),
    "bad block": BEGIN + frame(http2.HEADERS, http2.END_HEADERS, 1, b"\x80"),
    "bad padding": CALL + frame(http2.DATA, http2_call.PADDED, 1, b"\x09abc"),
    "compressed": CALL + data(b"\1\0\0\0\1a"),
    "message too large": CALL + data(b"\0\xff\0\0\0"),
    "control frame too large": CALL + frame(0x77, 0, 0, bytes(20_000)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_connection(fault: str) -> None:
    with pytest.raises(Http2Error):
        new_call(FAULTS[fault])


@pytest.mark.parametrize("kind", http2.FLOODS)
def test_a_flood_is_cut_after_few_frames(kind: str) -> None:
    """A budget or a fault ends the flood; in both cases the handled part is bounded."""
    call, flood, handled = new_call(BEGIN), http2.FLOODS[kind](), 0
    with pytest.raises((FloodError, Http2Error)):
        while handled < 2 * MIB:
            batch = next(flood)
            handled += len(batch)
            call.receive(batch, 0.0)
    assert handled <= 128 * 1024
    assert len(call.take_output()) < 8 * 1024


def test_a_trickle_is_no_flood() -> None:
    call = new_call(CALL)
    for second in range(1, 1000):
        call.receive(frame(http2.PING, 0, 0, bytes(8)) * 4, float(second))


def test_window_updates_are_earned_by_what_was_sent() -> None:
    call = new_call(CALL + frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\0\0\0"))
    update = frame(http2.WINDOW_UPDATE, 0, 1, b"\0\0\1\0")
    for _ in range(3 * http2_budget.FLOW_FRAMES):
        call.send(b"a packet of about thirty bytes")
        call.take_output()
        call.receive(update * 2, 0.0)
    with pytest.raises(FloodError):
        call.receive(update * (http2_budget.FLOW_FRAMES + 1), 0.0)
