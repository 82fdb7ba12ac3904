"""A process that fills a small disk, is refused, gets room, and continues: ``DISK COPY_TO``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import trio

from tests.server.store.writing import write
from tests.support.fakes.opened_store import opened
from tunnel_server.store.store import FILE, StoreSettings


async def main(disk: Path, copy_to: Path) -> None:
    number = 1
    async with opened(disk, settings=StoreSettings(disk / FILE, disk / "audit.jsonl")) as store:
        while await write(store, number):
            number += 1
        for _ in range(3):
            await write(store, number)
        await store.tokens()
        (disk / "ballast").unlink()
        for further in range(number, number + 10):
            assert await write(store, further)
    shutil.copy(disk / FILE, copy_to / FILE)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), Path(sys.argv[2]))
