"""A stream keeps trio's contract, in memory and over real gRPC with TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from tests.support.fakes.grpc_link import grpc_links
from tests.support.fakes.memory_link import TARGET, LinkPair, memory_links
from tests.support.fakes.streams import wait_reset
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream

SMALL = Limits(initial_credit=4096, max_credit=4096, max_stream_queue=4096)
"""Credit that a test can use up in a moment."""


@pytest.fixture(params=[memory_links, grpc_links], ids=["memory", "grpc"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[LinkPair]:
    async with request.param(SMALL) as links:
        yield links


async def _clog(stream: TunnelStream) -> None:
    """Sends until nothing more is taken."""
    while True:
        with trio.move_on_after(0.05) as scope:
            await stream.put(b"x" * 1024)
        if scope.cancelled_caught:
            return


async def test_is_a_half_closeable_stream(pair: LinkPair) -> None:
    async def clogged() -> tuple[TunnelStream, TunnelStream]:
        near, far = await pair.streams()
        await _clog(near)
        await _clog(far)
        return near, far

    await trio.testing.check_half_closeable_stream(pair.streams, clogged)


async def test_cancelled_receive_loses_nothing(pair: LinkPair) -> None:
    near, far = await pair.streams()
    received = bytearray()

    async def receive_with_interruptions() -> None:
        while len(received) < 20_000:
            with trio.move_on_after(0):
                received.extend(await far.receive_some(100))
            with trio.move_on_after(0.001):
                received.extend(await far.receive_some(100))

    expected = bytes(range(250)) * 80
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_with_interruptions)
        await near.send_all(expected)
    assert bytes(received) == expected


async def test_half_close_lets_the_other_half_go_on(pair: LinkPair) -> None:
    near, far = await pair.streams()
    await near.send_all(b"question")
    await near.send_eof()
    assert await _read_all(far) == b"question"
    await far.send_all(b"answer")
    await far.aclose()
    assert await _read_all(near) == b"answer"
    await near.aclose()


async def test_data_queued_before_a_close_is_delivered(pair: LinkPair) -> None:
    near, far = await pair.streams()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            await near.send_all(b"z" * 50_000)
            await near.aclose()

        assert len(await _read_all(far)) == 50_000


async def test_reset_sends_the_reason_to_the_peer(pair: LinkPair) -> None:
    near, far = await pair.streams()
    near.reset(Reason.USER_LEFT, "gone")
    assert await wait_reset(far) is Reason.USER_LEFT
    for call in (far.receive_some, lambda: far.send_all(b"x")):
        with pytest.raises(StreamReset) as caught:
            await call()
        assert caught.value.reason is Reason.USER_LEFT


async def test_cancelled_close_is_a_reset(pair: LinkPair) -> None:
    near, far = await pair.streams()
    await near.send_all(b"half of it")
    await trio.aclose_forcefully(near)
    assert await wait_reset(far) is Reason.USER_LEFT


async def test_leaving_by_an_exception_is_a_reset(pair: LinkPair) -> None:
    near, far = await pair.streams()
    with pytest.raises(RuntimeError):
        async with near:
            raise RuntimeError
    await wait_reset(far)


async def test_refusal_carries_reason_and_sentence(pair: LinkPair) -> None:
    near = pair.server.open(TARGET, user="operator", entrance="tcp")
    far = await pair.opened.receive()
    far.refuse(Reason.DIAL_REFUSED, "nobody listens on 127.0.0.1:22")
    with pytest.raises(Refused) as caught:
        await near.wait_opened()
    assert (caught.value.reason, caught.value.detail) == (
        Reason.DIAL_REFUSED,
        "nobody listens on 127.0.0.1:22",
    )
    near.reset(Reason.USER_LEFT)


async def test_a_user_who_leaves_ends_the_wait_for_the_dial(pair: LinkPair) -> None:
    near = pair.server.open(TARGET, user="operator", entrance="tcp")
    far = await pair.opened.receive()
    with pytest.raises(Refused) as caught:
        await near.wait_opened(trio.lowlevel.checkpoint)
    assert caught.value.reason is Reason.USER_LEFT
    far.accept("")
    await near.wait_opened()
    near.reset(Reason.USER_LEFT)


async def test_a_reset_here_ends_the_wait_for_the_dial(pair: LinkPair) -> None:
    """A revoked user gets the cause, and the wait for the user's end is over before the next step."""
    near = pair.server.open(TARGET, user="operator", entrance="connect")
    await pair.opened.receive()
    ends: list[str] = []

    async def wait_left() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append("cancelled")

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def revoke() -> None:
            await trio.sleep(0.01)
            near.reset(Reason.REVOKED, "kim was revoked")

        with pytest.raises(Refused) as caught:
            await near.wait_opened(wait_left)
    assert (caught.value.reason, caught.value.detail) == (Reason.REVOKED, "kim was revoked")
    assert ends == ["cancelled"]


async def test_a_cancelled_wait_for_the_dial_changes_nothing(pair: LinkPair) -> None:
    near = pair.server.open(TARGET, user="operator", entrance="connect")
    far = await pair.opened.receive()
    with trio.move_on_after(0.01) as scope:
        await near.wait_opened()
    assert scope.cancelled_caught
    far.accept("127.0.0.1:22")
    await near.wait_opened()
    assert near.address == "127.0.0.1:22"
    near.reset(Reason.USER_LEFT)


async def test_early_data_arrives_with_the_open(pair: LinkPair) -> None:
    near = pair.server.open(TARGET, user="operator", entrance="web", early_data=b"GET / ")
    far = await pair.opened.receive()
    assert far.receive_nowait(100) == b"GET / "
    far.accept("")
    await near.wait_opened()
    near.reset(Reason.USER_LEFT)


async def test_user_who_leaves_cancels_the_dial(pair: LinkPair) -> None:
    near = pair.server.open(TARGET, user="operator", entrance="tcp")
    far = await pair.opened.receive()
    near.reset(Reason.USER_LEFT)
    assert await wait_reset(far) is Reason.USER_LEFT
    far.reset(Reason.USER_LEFT)


async def test_ids_are_the_same_on_both_ends(pair: LinkPair) -> None:
    near, far = await pair.streams()
    assert near.id == far.id
    assert (far.user, far.entrance, far.target) == ("operator", "tcp", "localhost:22")


async def test_nothing_is_left_of_closed_streams(pair: LinkPair) -> None:
    for _ in range(20):
        near, far = await pair.streams()
        await near.send_all(b"x")
        await near.send_eof()
        assert await _read_all(far) == b"x"
        await far.aclose()
        assert await _read_all(near) == b""
        await near.aclose()
    assert not pair.server.streams and not pair.agent.streams
    await _until(
        lambda: pair.server.statistics().credit_granted == pair.agent.statistics().credit_granted == 0
    )


async def test_a_sent_packet_wakes_no_reader(pair: LinkPair) -> None:
    near, far = await pair.streams()
    looks: list[int | None] = []

    def take() -> None:
        data = near.receive_nowait(100)
        looks.append(None if data is None else len(data))

    near.set_reader(take)
    for _ in range(20):
        await near.send_all(b"x" * 1024)
        await far.receive_some()
    assert not looks, "nothing was there to take"
    await far.send_all(b"answer")
    await _until(lambda: looks == [6])
    near.set_reader(None)
    near.reset(Reason.USER_LEFT)


async def test_arriving_data_wakes_no_sender_without_room(pair: LinkPair) -> None:
    near, far = await pair.streams()
    await _clog(near)
    woken = trio.Event()

    async def send() -> None:
        await near.send_all(b"x")
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await far.send_all(b"y" * 1024)
        assert await near.receive_some() == b"y" * 1024
        assert not woken.is_set()
        while not woken.is_set():
            await far.receive_some()
            await trio.testing.wait_all_tasks_blocked(0.01)
    near.reset(Reason.USER_LEFT)


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a state machine has no events
            await trio.sleep(0.005)


async def _read_all(stream: TunnelStream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)
