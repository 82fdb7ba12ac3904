"""A tunnel joined to an end that only cancellation wakes, such as standard input in a thread."""

from __future__ import annotations

import trio
import trio.testing

from tunnel_core.reasons import Reason
from tunnel_core.streams.relay import relay


class DeafEnd(trio.abc.HalfCloseableStream):
    """End that never receives and cannot be aborted. The other side closes its output."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise trio.BrokenResourceError("standard output: Broken pipe")

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_the_relay_ends_with_the_first_cause() -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"x")
    with trio.fail_after(5):
        result = await relay(DeafEnd(), near)
    assert (result.reason, result.detail) == (Reason.USER_LEFT, "standard output: Broken pipe")
