"""A process that writes endlessly and prints what was acknowledged. It is killed, or its disk is full.

    python -m tests.server.store.writing FOLDER FIRST_NUMBER [MAX_FILE_BYTES]

Each line ``ok NUMBER`` is a revocation that was acknowledged; ``no REASON`` one that was refused. With a
limit of bytes the process lifts the limit after the first refusal, writes ten more and ends.
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path

import trio

from tests.support.fakes.opened_store import opened
from tunnel_core.reasons import Refused
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.store.store import FILE, Store, StoreSettings

AT_ONCE = 8


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201 - what the test reads


async def write(store: Store, number: int) -> bool:
    try:
        await store.revoke(RevocationKind.SERIAL, f"{number:x}", "test", "x" * 200)
    except Refused as refused:
        say("no", refused.reason.word)
        return False
    say("ok", number)
    return True


async def write_for_ever(store: Store, first: int) -> None:
    while True:
        await write(store, first)
        first += AT_ONCE


async def until_full_and_then_ten(store: Store, first: int) -> None:
    while await write(store, first):
        first += 1
    for _ in range(3):  # the store stays refused, and stays usable
        await write(store, first)
    await store.tokens()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for number in range(first, first + 10):
        assert await write(store, number)


async def main(folder: Path, first: int, max_file_bytes: int) -> None:
    async with opened(folder, settings=StoreSettings(folder / FILE, folder / "audit.jsonl")) as store:
        if max_file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
            await until_full_and_then_ten(store, first)
            return
        async with trio.open_nursery() as nursery:
            for offset in range(AT_ONCE):
                nursery.start_soon(write_for_ever, store, first + offset)


if __name__ == "__main__":
    trio.run(partial(main, Path(sys.argv[1]), int(sys.argv[2]), int((*sys.argv, "0")[3])))
