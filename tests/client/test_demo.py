"""``qanat demo`` as a real process with all its programs: whatever ends it, no process is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes.terminals import terminal
from tunnel_client import demo_guard
from tunnel_client.commands.demo import forward_line
from tunnel_client.demo import check_target, remove_left_behind
from tunnel_core.cli.command_line import CommandError
from tunnel_core.names import Target

DEMO = [sys.executable, "-c", "from tunnel_client.main import main; main(prog_name='qanat')", "demo"]
READY = "Ctrl-C ends it"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: the demo has unix sockets below it, and those have a limit."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield Path(made)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The demo's folder is made in ``folder``, and the programs beside this Python are found."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = {**os.environ, "TMPDIR": str(folder), "PATH": scripts, "SSH_CONNECTION": ""}
    return {**found, "PYTHONPATH": str(Path(__file__).parents[2]), **more}


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*DEMO, *options]
    found = environment(folder)
    return subprocess.run(command, env=found, capture_output=True, text=True, timeout=60)  # noqa: S603


def programs_in(folder: Path) -> list[str]:
    """The command lines of all processes that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(entry.name) != os.getpid():
            found.append(line)
    return found


def wait_nothing_left(folder: Path, *, deadline_seconds: float = 20) -> None:
    end = time.monotonic() + deadline_seconds
    while (left := [*programs_in(folder), *map(str, folder.iterdir())]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


def send(*numbers: int) -> Callable[[subprocess.Popen[bytes]], None]:
    def send_all(process: subprocess.Popen[bytes]) -> None:
        for number in numbers:
            process.send_signal(number)

    return send_all


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (send(signal.SIGTERM), 143),
        (send(signal.SIGINT, signal.SIGINT), 0),
        (send(signal.SIGKILL), -signal.SIGKILL),
        (None, 129),
    ],
    ids=["SIGTERM", "Ctrl-C twice", "SIGKILL", "the terminal is closed"],
)
def test_nothing_is_left(
    folder: Path, end: Callable[[subprocess.Popen[bytes]], None] | None, code: int
) -> None:
    came = {"SSH_CONNECTION": "198.51.100.7 50000 203.0.113.9 22", "SUDO_USER": "kim"}
    with terminal(DEMO, environment(folder, **came)) as window:
        shown = window.wait_for(READY)
        for way in ("ssh -L", "'--header=Host: status--demo.localhost:", "--target HOST:PORT"):
            assert way in shown
        assert len(programs_in(folder)) == 3  # the server, the agent and the guard
        window.close() if end is None else end(window.process)
        assert window.process.wait(20) == code
    wait_nothing_left(folder)


def test_nothing_is_left_of_a_demo_that_ends_while_it_starts(folder: Path) -> None:
    with terminal(DEMO, environment(folder)) as window:
        window.wait_for("Making certificates")
        window.process.send_signal(signal.SIGTERM)
        assert window.process.wait(20) == 143
    wait_nothing_left(folder)


def test_nothing_is_left_when_the_reader_of_its_output_ends(folder: Path) -> None:
    """As in ``ssh HOST qanat demo``, where no SIGHUP arrives, and in ``qanat demo | head -1``."""
    with subprocess.Popen(  # noqa: S603 - our own
        DEMO, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert b"Making certificates" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) in (1, 129)
        assert process.stderr.read() == b""
    wait_nothing_left(folder)


def test_once_shows_no_url_that_is_gone(folder: Path) -> None:
    done = run_demo(folder, "--once")
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout
    assert "http://" not in done.stdout
    assert list(folder.iterdir()) == []


def test_a_folder_of_a_demo_that_was_killed_is_removed(folder: Path) -> None:
    old, young, other = (folder / name for name in ("qanat-demo-old", "qanat-demo-young", "mine"))
    for made in (old, young, other):
        (made / "server").mkdir(parents=True)
    long_ago = time.time() - 3600
    for made in (old, other):
        os.utime(made, (long_ago, long_ago))
    (folder / "qanat-demo-link").symlink_to(other)
    remove_left_behind(folder)
    assert not old.exists()
    assert young.exists()
    assert (other / "server").exists()


def test_the_guard_does_nothing_if_the_demo_ended_by_itself(folder: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        demo_guard.main(folder, ["1\n", "done\n"])
        assert folder.exists()
        demo_guard.main(folder, [])
        assert not folder.exists()
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), handlers, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("connection", "line"),
    [
        ("", ""),
        ("198.51.100.7 50000 203.0.113.9 22", "ssh -L 7003:127.0.0.1:7003 kim@203.0.113.9"),
        ("2001:db8::7 50000 2001:db8::1 2222", "ssh -p 2222 -L 7003:127.0.0.1:7003 kim@2001:db8::1"),
    ],
)
def test_ssh_gets_the_port_to_carry(connection: str, line: str) -> None:
    assert forward_line(7003, {"SSH_CONNECTION": connection, "SUDO_USER": "kim"}) == line


async def test_a_dead_target_is_named_with_its_cause(folder: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening, so no other program gets the port
        with pytest.raises(CommandError, match="refused: nothing listens there"):
            await check_target(Target(host="127.0.0.1", port=held.getsockname()[1]))
        held.listen()
        await check_target(Target(host="127.0.0.1", port=held.getsockname()[1]))
    with pytest.raises(CommandError, match="the name cannot be resolved"):
        await check_target(Target(host="nothing.invalid", port=80))
    with pytest.raises(CommandError, match="No such file"):
        await check_target(Target(unix_path=str(folder / "socket")))


@pytest.mark.parametrize("wrong", ["8080", "http://localhost:80/", "localhost", "web"])
def test_a_wrong_target_gets_the_right_form_in_the_message(folder: Path, wrong: str) -> None:
    done = run_demo(folder, "--once", "--target", wrong)
    assert done.returncode == 2
    assert "--target takes HOST:PORT or unix:/PATH, for example --target 127.0.0.1:8080" in done.stderr
    assert wrong in done.stderr
