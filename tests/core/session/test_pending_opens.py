"""An agent that never answers an open: the server resets that stream in time, and no other."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support.fakes.memory_link import TARGET, memory_links
from tests.support.fakes.streams import wait_reset
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, Refused


async def test_an_open_without_an_answer_is_reset_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_links(Limits(open_timeout_seconds=5)) as pair:
        kept, far_kept = await pair.streams()
        start = trio.current_time()
        stream = pair.server.open(TARGET, user="operator", entrance="tcp")
        far = await pair.opened.receive()
        with pytest.raises(Refused) as caught:
            await stream.wait_opened()
        assert caught.value.reason is Reason.OPEN_TIMEOUT
        assert "edge1 did not answer within 5 s" in caught.value.detail
        assert trio.current_time() - start == pytest.approx(5, abs=0.1)
        assert await wait_reset(far) is Reason.OPEN_TIMEOUT
        await kept.send_all(b"still here")
        assert await far_kept.receive_some() == b"still here"
        for end in (stream, far, kept, far_kept):
            end.reset(Reason.USER_LEFT)


async def test_the_owner_is_informed_of_the_answer_once() -> None:
    async with memory_links() as pair:
        calls: list[str] = []
        stream = pair.server.open(
            TARGET, user="operator", entrance="tcp", on_opened=lambda: calls.append(stream.address)
        )
        far = await pair.opened.receive()
        far.accept("127.0.0.1:22")
        await stream.wait_opened()
        assert calls == ["127.0.0.1:22"]
        stream.reset(Reason.USER_LEFT)
        far.reset(Reason.USER_LEFT)


async def test_an_owner_who_has_left_is_not_informed_of_an_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The owner has already recorded that nothing was opened."""
    async with memory_links() as pair:
        calls: list[bool] = []
        stream = pair.server.open(
            TARGET, user="operator", entrance="tcp", on_opened=lambda: calls.append(True)
        )
        far = await pair.opened.receive()
        far.accept("127.0.0.1:22")  # on its way
        stream.reset(Reason.USER_LEFT)
        await trio.sleep(1)
        assert not calls
        far.reset(Reason.USER_LEFT)
