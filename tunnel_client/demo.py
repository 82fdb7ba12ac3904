"""Demo: a server and an agent as real processes in a temporary folder, with fresh certificates."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h11
import trio

from tunnel_client.demo_guard import DONE
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.names import Target

NODE = "demo"
_START_SECONDS = 20.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0
_DIAL_SECONDS = 5.0
_PREFIX = "qanat-demo-"
_LEFT_BEHIND_SECONDS = 60.0
"""Minimum age of a folder that is removed. A younger folder may not have its lock yet."""
_FIRST_PORT, _PORTS = 20_000, 10_000
_MAX_PORT_TRIES = 1000
_ROLES = ("agents", "https", "web", "ops", "agent_ops")


@dataclass(frozen=True, slots=True)
class Demo:
    """A running demo. ``service`` is the name of the service that the web entrance shows."""

    folder: Path
    ports: dict[str, int]
    service: str
    target: Target

    @property
    def url(self) -> str:
        return f"http://{self.service}--{NODE}.localhost:{self.ports['web']}/"

    @property
    def bundle(self) -> Path:
        return self.folder / "server" / "operator.pem"

    @property
    def host(self) -> str:
        """``Host`` header of requests to the web entrance."""
        return self.url.split("/")[2]

    def curl(self) -> list[str]:
        """Return a curl command that sends a CONNECT through the server."""
        proxy = ["--proxy", f"https://localhost:{self.ports['https']}", "--proxy-cacert", str(self.bundle)]
        return ["curl", "-sp", *proxy, "--proxy-cert", str(self.bundle), f"http://{self.service}.{NODE}/"]

    def commands(self) -> list[list[str]]:
        """Return three commands for the user to paste."""
        qanat = ["qanat" if shutil.which("qanat") else _script("qanat"), "--bundle", str(self.bundle)]
        return [self.curl(), [*qanat, "forward", NODE, self.service], [*qanat, "nodes"]]


@asynccontextmanager
async def running_demo(target: Target | None, kill_now: trio.Event) -> AsyncIterator[Demo]:
    """Start both programs, and wait until the node is attached. Afterwards end them and remove the folder.

    ``target`` is the target to publish, or None for the agent's own status page. When ``kill_now`` is set,
    the programs are killed without waiting for their end. Raises ``CommandError``.
    """
    remove_left_behind(Path(tempfile.gettempdir()))
    with _folder() as folder, _guard(folder) as guard:
        ports = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
        shown = target or Target(host="127.0.0.1", port=ports["agent_ops"])
        demo = Demo(folder, ports, "web" if target else "status", shown)
        await _prepare(demo, publish=target)
        async with trio.open_nursery() as nursery:
            run = partial(_run_program, guard=guard, kill_now=kill_now)
            await nursery.start(run, _server(demo, "run"), folder / "server.log")
            await nursery.start(run, _agent(demo), folder / "agent.log")
            await _wait_ready(demo)
            yield demo
            nursery.cancel_scope.cancel()


async def check_target(target: Target) -> None:
    """Dial the target before the demo starts. Raises ``CommandError`` if the dial fails."""
    try:
        with trio.fail_after(_DIAL_SECONDS):
            if target.unix_path:
                stream: trio.abc.AsyncResource = await trio.open_unix_socket(target.unix_path)
            else:
                stream = await trio.open_tcp_stream(target.host, target.port)
    except trio.TooSlowError:
        cause = f"no answer within {_DIAL_SECONDS:g} s: is the host up, and does a firewall drop the port?"
    except (OSError, ValueError) as error:
        cause = _why_not_dialled(error)
    else:
        await trio.aclose_forcefully(stream)
        return
    raise CommandError(ExitCode.FAILED, f"--target {target}: {cause}")


def _why_not_dialled(error: OSError | ValueError) -> str:
    """Return the cause of a failed dial.

    trio raises one ``OSError`` for all addresses of a name. Its cause has the error of each address.
    """
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved: {error.strerror}"
    inner: BaseException = error.__cause__ or error
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    number = inner.errno if isinstance(inner, OSError) else None
    if number == errno.ECONNREFUSED:
        return "the connection is refused: nothing listens there; start it first"
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"the host is unreachable: {os.strerror(number)}"
    return str(getattr(inner, "strerror", None) or inner)


@contextmanager
def _folder() -> Iterator[Path]:
    """Create a folder that is locked while this process lives. It has keys, so only this user may enter."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def remove_left_behind(place: Path) -> None:
    """Remove the folders of this user's demos that have ended. A running demo has a lock on its folder."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_old = time.time() - status.st_mtime > _LEFT_BEHIND_SECONDS
            if status.st_uid == os.getuid() and is_old and _is_unlocked(folder):
                shutil.rmtree(folder)


def _is_unlocked(folder: Path) -> bool:
    """Whether the folder has no lock. Raises ``OSError`` if ``folder`` is not a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _guard(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that cleans up if this one is killed."""
    command = [sys.executable, "-P", "-m", "tunnel_client.demo_guard", str(folder)]
    # The guard must not inherit a pipe as output, because the pipe would stay open after the demo.
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(  # noqa: S603 - our own
        command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, text=True, start_new_session=True
    ) as guard:
        try:
            yield guard
        finally:
            _send_line(guard, DONE)


def _send_line(guard: subprocess.Popen[str], line: str) -> None:
    assert guard.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # The guard was killed.
        guard.stdin.write(f"{line}\n")
        guard.stdin.flush()


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now. All are held until the last one is found, so that they differ.

    They are below the range from which Linux and macOS choose ports for connections.
    """
    held: list[socket.socket] = []
    for _ in range(_MAX_PORT_TRIES):
        with contextlib.suppress(OSError):  # The port is in use.
            port = _FIRST_PORT + secrets.randbelow(_PORTS)
            held.append(socket.create_server(("127.0.0.1", port)))
        if len(held) == count:
            break
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    if len(ports) < count:
        last = _FIRST_PORT + _PORTS - 1
        raise CommandError(ExitCode.FAILED, f"no free ports on 127.0.0.1 between {_FIRST_PORT} and {last}")
    return ports


async def _prepare(demo: Demo, *, publish: Target | None) -> None:
    ports = demo.ports
    options = [f"--{role}-port={ports[role]}" for role in ("agents", "https", "web", "ops")]
    data_dir = str(demo.folder / "server")
    await _call([_script("qanat-server"), "init", "--name=localhost", f"--data-dir={data_dir}", *options])
    node = str(demo.folder / "node.pem")
    await _call(_server(demo, "issue", "node", NODE, f"--out={node}"))
    (demo.folder / "agent.toml").write_text(_agent_toml(demo, publish))


def _agent_toml(demo: Demo, publish: Target | None) -> str:
    service = f'[[service]]\nname = "web"\ntarget = "{publish}"\nprotocol = "http"\n' if publish else ""
    return (
        f'servers = ["localhost:{demo.ports["agents"]}"]\n'
        'bundle_file = "node.pem"\n'
        f'{service}[ops]\nlisten = "127.0.0.1:{demo.ports["agent_ops"]}"\n'
    )


def _server(demo: Demo, *arguments: str) -> list[str]:
    return [_script("qanat-server"), *arguments, f"--config={demo.folder / 'server' / 'server.toml'}"]


def _agent(demo: Demo) -> list[str]:
    return [_script("qanat-agent"), "run", f"--config={demo.folder / 'agent.toml'}"]


def _script(name: str) -> str:
    """Return the program that is installed beside this Python. Raises ``CommandError``."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        message = f"{name} is not installed beside this program; install Qanat again"
        raise CommandError(ExitCode.FAILED, message)
    return found


async def _call(command: list[str]) -> None:
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise CommandError(ExitCode.FAILED, f"{Path(command[0]).name} {command[1]} failed: {text}")


async def _run_program(
    command: list[str],
    log: Path,
    *,
    guard: subprocess.Popen[str],
    kill_now: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a program until cancelled, and then end it with SIGTERM, and after 10 s with SIGKILL.

    Raises ``CommandError`` with the end of its log if the program ends by itself.
    """
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # In a separate group the program gets no Ctrl-C. This process ends both programs in order.
            process_group=0,
        )
        try:
            _send_line(guard, str(process.pid))
            task_status.started()
            await process.wait()
        finally:
            await _end(process, kill_now)
    raise _failure(f"{Path(command[0]).name} ended:", log)


def _failure(what: str, log: Path) -> CommandError:
    tail = log.read_text(errors="replace").strip().splitlines()[-5:]
    return CommandError(ExitCode.FAILED, "\n".join([what, *tail]))


async def _end(process: trio.Process, kill_now: trio.Event) -> None:
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
        with trio.move_on_after(_STOP_SECONDS):
            await _wait_either(process, kill_now)
        if process.poll() is None:
            process.kill()
            await process.wait()


async def _wait_either(process: trio.Process, kill_now: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait_kill_now() -> None:
            await kill_now.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_kill_now)
        await process.wait()
        nursery.cancel_scope.cancel()


async def _wait_ready(demo: Demo) -> None:
    """Wait until the agent reports that it is attached. Raises ``CommandError`` after 20 s."""
    with trio.move_on_after(_START_SECONDS):
        while await _status(demo.ports["agent_ops"], "/readyz") != 200:  # noqa: ASYNC110 - another process
            await trio.sleep(_POLL_SECONDS)
        return
    raise _failure("the agent did not attach:", demo.folder / "agent.log")


async def _status(port: int, path: str, host: str = "localhost") -> int:
    """Return the status of a GET on loopback, or 0 without an answer."""
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            return await _get(stream, path, host)
    except (OSError, h11.RemoteProtocolError):
        return 0


async def _get(stream: trio.abc.Stream, path: str, host: str) -> int:
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=path, headers=[("host", host), ("connection", "close")])
    data = connection.send(request)
    assert data is not None
    await stream.send_all(data)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(bytes(await stream.receive_some()))
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    return event.status_code


async def check_demo(demo: Demo) -> list[tuple[str, bool]]:
    """Check the demo through the tunnel. Return the name of each check, and whether it succeeded."""
    status = await _status(demo.ports["web"], "/", demo.host)
    nodes = await _exit_code([*demo.commands()[2], "--json"])
    results = [
        (f"GET / of {demo.service}--{NODE}, as a browser does", 0 < status < 500),
        ("qanat nodes", nodes == 0),
    ]
    if shutil.which("curl"):
        results.append(
            ("CONNECT with curl", await _exit_code([*demo.curl(), "-m", "10", "-o", "/dev/null"]) == 0)
        )
    return results


async def _exit_code(command: list[str]) -> int:
    run = partial(trio.run_process, capture_stdout=True, capture_stderr=True, check=False)
    return (await run(command)).returncode
