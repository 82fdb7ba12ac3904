"""Two attached sessions over eager carriers. A test reads what each end sent before it is delivered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from tests.support.fakes.eager_carrier import EagerCarrier
from tests.support.fakes.memory_link import LinkPair, attach_links
from tunnel_core.limits import Limits


@asynccontextmanager
async def eager_links(limits: Limits | None = None) -> AsyncIterator[tuple[LinkPair, Callable[[], None]]]:
    """Yield attached sessions over eager carriers, and a function that delivers until neither end sends."""
    ends = EagerCarrier(), EagerCarrier()
    pairs: list[LinkPair] = []

    def deliver() -> None:
        while ends[0].packets or ends[1].packets:
            ends[0].deliver(ends[1])
            ends[1].deliver(ends[0])

    async with trio.open_nursery() as nursery:

        async def attach() -> None:
            pairs.append(await attach_links(nursery, *ends, limits or Limits()))

        nursery.start_soon(attach)
        while not pairs:
            await trio.testing.wait_all_tasks_blocked()
            deliver()
        await trio.testing.wait_all_tasks_blocked()
        deliver()
        assert pairs[0].server.attached and pairs[0].agent.attached
        yield pairs[0], deliver
        nursery.cancel_scope.cancel()


def carrier_of(pair: LinkPair, index: int) -> EagerCarrier:
    carrier = pair.carriers[index]
    assert isinstance(carrier, EagerCarrier)
    return carrier
