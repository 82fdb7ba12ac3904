"""An agent on a board with 256 MiB survives targets that stop reading. A cgroup stands for the board."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.agent.test_process import COMMAND, accept_agent
from tests.support.fakes.grpc_site import open_site
from tests.support.net.listening import listening
from tests.support.pki.authority import write_node_bundle
from tests.support.processes.servers import unread
from tunnel_core.limits import KIB, MIB
from tunnel_core.names import Target
from tunnel_core.session.session import Session

BOARD_BYTES = 256 * MIB
READERS = 120
READ_FIRST = 16 * MIB
"""Bytes that each target reads before it stops, so that its window grows."""
_CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def board() -> Iterator[Path]:
    """A cgroup of 256 MiB without swap; the test is skipped where none can be made."""
    version_1 = (_CGROUPS / "memory").is_dir()
    folder = (_CGROUPS / "memory" if version_1 else _CGROUPS) / f"qanat-test-{os.getpid()}"
    names = ("memory.limit_in_bytes",) if version_1 else ("memory.max", "memory.swap.max")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        try:
            (folder / names[0]).write_text(str(BOARD_BYTES))
            for name in names[1:]:
                if (folder / name).exists():
                    (folder / name).write_text("0")
            subprocess.run([*_enter(folder), "true"], check=True)  # noqa: S603 - ours
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no process can be put into a cgroup with a memory limit here: {error}")
        yield folder
    finally:
        folder.rmdir()


def _enter(board: Path) -> list[str]:
    """Return the start of a command line that runs the rest on the board."""
    return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(board)]


async def read_and_stop(stream: trio.SocketStream) -> None:
    left = READ_FIRST
    while left > 0:
        left -= len(await stream.receive_some(64 * KIB))
    await trio.sleep_forever()


async def upload_until_stalled(session: Session, target: str) -> None:
    """Send until nothing was sent for a second."""
    stream = session.open(Target.parse(target), user="kim", entrance="tcp")
    await stream.wait_opened()
    piece = bytes(256 * KIB)
    while True:
        with trio.move_on_after(1) as stalled:
            await stream.flush()
        if stalled.cancelled_caught:
            return
        stream.send_nowait(piece)


async def test_targets_that_stop_reading_do_not_end_an_agent_with_256_mib(
    board: Path, tmp_path: Path
) -> None:
    with trio.fail_after(180):
        async with listening(read_and_stop) as target, open_site() as site, trio.open_nursery() as nursery:
            config = tmp_path / "agent.toml"
            config.write_text(f'allow = ["{target}"]\n[ops]\nlisten = ""\n')
            write_node_bundle(tmp_path / "node.pem", "edge1", site.address)
            command = [*_enter(board), *COMMAND, "run", "--config", str(config)]
            async with unread(command, stderr=subprocess.DEVNULL) as process:
                session = await accept_agent(site, nursery)
                async with trio.open_nursery() as users:
                    for _ in range(READERS):
                        users.start_soon(upload_until_stalled, session, target)
                assert process.poll() is None, "the kernel killed the agent"
                assert session.attached
                stream = session.open(Target.parse(target), user="kim", entrance="tcp")
                await stream.wait_opened()
                stream.close_nowait()
            nursery.cancel_scope.cancel()
