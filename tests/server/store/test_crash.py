"""kill -9 and full disks: every acknowledged write is there, nothing is damaged, and the store continues."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fakes.opened_store import opened
from tunnel_core.identity import Role, SpiffeId
from tunnel_server.store.database import open_database
from tunnel_server.store.lock import StoreHeld, hold_store
from tunnel_server.store.store import FILE

ROOT = Path(__file__).parents[3]


def command(folder: Path, first: int, *more: int) -> list[str]:
    return [sys.executable, "-m", "tests.server.store.writing", str(folder), str(first), *map(str, more)]


@contextlib.contextmanager
def writing(folder: Path, first: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command(folder, first), stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:  # noqa: S603
        try:
            yield process
        finally:
            process.kill()


def kept(folder: Path) -> set[int]:
    with contextlib.closing(open_database(folder / FILE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return {int(row[0], 16) for row in connection.execute("SELECT subject FROM revocations")}


async def test_killed_at_any_point_it_has_what_it_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(5)  # noqa: S311 - when to kill
    acknowledged: set[int] = set()
    for round_number in range(8):
        with writing(tmp_path, round_number * 100_000) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 400)):
                acknowledged.add(int(process.stdout.readline().split()[1]))
            process.send_signal(signal.SIGKILL)
            *rest, _ = process.stdout.read().split("\n")  # the kill may cut the last line off
        acknowledged |= {int(line.split()[1]) for line in rest if line.startswith("ok ")}
        assert acknowledged <= kept(tmp_path)
    async with opened(tmp_path) as store:
        for number in acknowledged:
            assert store.revoked.covers(SpiffeId("d", Role.NODE, "any"), f"{number:x}")


def check_full(output: str, folder: Path, *words: str) -> None:
    lines = output.splitlines()
    refused = [line for line in lines if line.startswith("no ")]
    assert len(refused) == 4, output[-2000:]
    assert set(refused) <= {f"no {word}" for word in words}
    accepted = {int(line.split()[1]) for line in lines if line.startswith("ok ")}
    assert len(accepted) > 10
    assert accepted == kept(folder)


def test_a_file_that_may_not_grow_refuses_and_goes_on_when_it_may(tmp_path: Path) -> None:
    ran = subprocess.run(  # noqa: S603
        command(tmp_path, 1, 300_000), capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    check_full(ran.stdout, tmp_path, "store_failed")


_ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=2m,mode=700 tmpfs "$1"
head -c 1500000 /dev/zero > "$1/ballast"
shift
exec "$@"
"""


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        return False
    probe = [unshare, "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(probe, capture_output=True).returncode == 0  # noqa: S603


@pytest.mark.skipif(not can_mount(), reason="needs root and mount namespaces (util-linux)")
def test_a_full_disk_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    program = [sys.executable, "-m", "tests.server.store.filling", str(tmp_path / "disk"), str(tmp_path)]
    mounted = ["unshare", "--mount", "sh", "-c", _ON_A_SMALL_DISK, "sh", str(tmp_path / "disk"), *program]
    ran = subprocess.run(mounted, capture_output=True, text=True, cwd=ROOT, timeout=60)  # noqa: S603
    assert ran.returncode == 0, ran.stderr
    check_full(ran.stdout, tmp_path, "store_full")


# The lock.


def test_one_process_has_the_store_and_the_other_learns_which(tmp_path: Path) -> None:
    with hold_store(tmp_path):
        with pytest.raises(StoreHeld, match=f"in use by process {os.getpid()}"), hold_store(tmp_path):
            pass
        assert (tmp_path / "store.lock").stat().st_mode & 0o777 == 0o600
    with hold_store(tmp_path):
        pass


def test_no_lock_outlives_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib; from tunnel_server.store.lock import hold_store\n"
        "with hold_store(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StoreHeld, match=f"process {process.pid}"), hold_store(tmp_path):
            pass
        process.kill()
    with hold_store(tmp_path):
        pass
