"""``qanat-agent join`` as a new user meets it: each failure, its remedy, and then the same line works."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.identity.conftest import ALLOW, HomeMaker
from tests.e2e.identity.homes import Home
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import AGENTS_PORT, Server
from tests.support.processes.site import ECHO

STEPS = [
    *("token", "node", "files", "dns", "tcp", "pin", "tls", "clock", "certificate", "agents"),
    *("enrol", "config", "attach"),
]


@pytest.fixture
def newcomer(home: HomeMaker, request: pytest.FixtureRequest) -> Home:
    name = re.sub("[^a-z0-9]+", "-", str(request.node.name).removeprefix("test_")).strip("-")
    return home(name[:60].rstrip("-"))


def _uses(server: Server, node: str) -> int:
    """How often the tokens for this node were used."""
    return sum(one["used"] for one in server.ask("/api/v1/admin/tokens")["tokens"] if one["node"] == node)


def _fails(done: subprocess.CompletedProcess[str], code: int, cause: str, cure: str) -> None:
    """Check that the failed step has cause and cure, and that nothing looks like an internal error."""
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    failed = done.stdout.partition("FAIL")[2]
    assert re.search(cause, failed), done.stdout
    assert re.search(cure, failed), done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def _works(server: Server, newcomer: Home, token: str) -> None:
    newcomer.join(server, token, *ALLOW)
    assert _uses(server, newcomer.node) == 1
    newcomer.start()
    with server.connect(f"{newcomer.node}:{ECHO}") as answer:
        assert answer.status == 200, answer.phrase
        assert answer.echoes(b"joined")


def test_one_paste(server: Server, newcomer: Home, tmp_path: Path) -> None:
    """The line that ``token create`` prints, and then the lines that ``join`` prints."""
    made = server.command_line("token", "create", "--node", newcomer.node)
    line = re.search(r"^  echo (\S+) \| qanat-agent join (\S+)$", made, re.MULTILINE)
    assert line, made
    token, where = line.groups()
    output = newcomer.join(where, token, "--service", f"echo=127.0.0.1:{ECHO}")
    assert re.findall(r"^PASS\s+(\w+)", output, re.MULTILINE) == STEPS
    assert token not in output
    assert f"qanat-agent run --config {newcomer.config_file}" in output
    forward = re.search(r"qanat (forward \S+ \S+)", output)
    assert forward and forward[1] == f"forward {newcomer.node} echo"
    newcomer.start()
    with server.connect(f"echo.{newcomer.node}:1") as answer:
        assert answer.echoes(b"by its name")
    bundle = newcomer.bundle.read_bytes()
    again = newcomer.try_join(where, token)
    assert again.returncode == 0
    assert "has joined as" in again.stdout
    assert newcomer.bundle.read_bytes() == bundle
    assert _uses(server, newcomer.node) == 1


def test_a_wrong_token(server: Server, newcomer: Home) -> None:
    gone = server.token(newcomer.node)
    server.tell("tokens/revoke", id=gone.removeprefix("qanat1_")[:16])
    right = server.token(newcomer.node)
    _fails(newcomer.try_join(server, gone), 3, "was revoked", "token create --node")
    typed = right[:60] + ("a" if right[60] != "a" else "b") + right[61:]
    _fails(newcomer.try_join(server, typed), 2, "checksum", "all of it")
    _fails(newcomer.try_join(server, right[:80]), 2, "characters", "all of it")
    _fails(newcomer.try_join(server, "hunter2"), 2, "does not begin with qanat1_", "all of it")
    other = server.token("another-node")
    _fails(newcomer.try_join(server, other), 3, "is for another-node", "--name")
    _works(server, newcomer, right)


def test_a_wrong_server(server: Server, newcomer: Home) -> None:
    token = server.token(newcomer.node)
    port = "7002 unless changed"
    for where, code, cause, cure in (
        (f"{server.address}:7999", 5, "refused", port),
        (f"{server.address}:{AGENTS_PORT}", 1, "TLS|closed the connection", port),
        (f"127.0.0.1:{ECHO}", 1, "TLS", port),
    ):
        _fails(newcomer.try_join(where, token), code, cause, cure)
    _works(server, newcomer, token)


def test_no_network(server: Server, newcomer: Home, network: Network) -> None:
    token = server.token(newcomer.node)
    with _link_down(network):
        _fails(newcomer.try_join(server, token), 5, "unreachable|no route", "let this machine reach")
    _works(server, newcomer, token)


@contextlib.contextmanager
def _link_down(network: Network) -> Iterator[None]:
    edge = network.edge(1)
    edge.run("ip", "link", "set", "eth0", "down")
    try:
        yield
    finally:
        edge.run("ip", "link", "set", "eth0", "up")
        edge.run("ip", "route", "replace", "default", "via", "192.168.1.1")


@pytest.mark.parametrize(
    ("clock", "cause"),
    [("1970-01-01 00:10:00", r"5\d years? .*behind"), ("+40d", r"d .*ahead of")],
    ids=["in_1970", "ahead"],
)
def test_a_wrong_clock(server: Server, newcomer: Home, clock: str, cause: str) -> None:
    token = server.token(newcomer.node)
    at = clock if clock.startswith("+") else f"@{clock}"
    done = newcomer.try_join(
        server,
        token,
        before=[tools.path_of("faketime"), "-f", at],
        environment={"FAKETIME_DONT_FAKE_MONOTONIC": "1"},
    )
    _fails(done, 1, cause, "timedatectl set-ntp true")
    assert _uses(server, newcomer.node) == 0
    _works(server, newcomer, token)


@pytest.mark.parametrize(
    ("harm", "mend", "cause", "cure"),
    [
        ("mount -o remount,ro {0}", "mount -o remount,rw {0}", "Read-only file system", "writable"),
        ("head -c 240k /dev/zero >{0}/full; true", "rm {0}/full", "No space left", "df -h"),
    ],
    ids=["read_only", "full"],
)
def test_a_disk_that_takes_nothing(
    server: Server, newcomer: Home, harm: str, mend: str, cause: str, cure: str
) -> None:
    token, folder = server.token(newcomer.node), newcomer.folder
    with _small_disk(folder):
        run("sh", "-c", harm.format(folder))
        _fails(newcomer.try_join(server, token), 2, cause, cure)
        assert _uses(server, newcomer.node) == 0
        run("sh", "-c", mend.format(folder))
        _works(server, newcomer, token)
        newcomer.process.kill()


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    assert run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)).returncode == 0
    try:
        yield
    finally:
        assert run("umount", "--lazy", str(folder)).returncode == 0


def test_interrupted_at_every_step(server: Server, home: HomeMaker, long: bool) -> None:
    signals = [signal.SIGINT, signal.SIGKILL]
    rounds = [(step, number) for step in STEPS for number in signals] if long else _alternating(signals)
    for step, number in rounds:
        machine = home(f"broken-off-{step}-{number.name.lower()}")
        token = server.token(machine.node)
        output, errors = _interrupted(machine, server, token, step, number)
        assert "Traceback" not in errors, errors
        if number is signal.SIGINT and "Next:" not in output:
            assert "run the same command again" in errors
        assert token not in output + errors
        machine.join(server, token, *ALLOW)
        assert _uses(server, machine.node) == 1, (step, number)
        left = sorted(file.name for file in machine.folder.iterdir())
        assert left == ["agent.toml", "node.pem"], (step, number)


def _alternating(signals: list[signal.Signals]) -> list[tuple[str, signal.Signals]]:
    return [(step, signals[at % 2]) for at, step in enumerate(STEPS)]


def _interrupted(
    machine: Home, server: Server, token: str, step: str, number: signal.Signals
) -> tuple[str, str]:
    """Return output and errors of a join that gets a signal as soon as it has printed ``step``."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        machine.namespace.argv(machine.joining(server, *ALLOW)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"},
    )
    assert process.stdin and process.stdout
    process.stdin.write(token + "\n")
    process.stdin.close()
    process.stdin = None
    shown = ""
    for line in process.stdout:
        shown += line
        if re.match(rf"PASS\s+{step}\b", line):
            break
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    return shown + rest, errors
