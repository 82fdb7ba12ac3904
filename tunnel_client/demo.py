"""A server and an agent as real processes in a temporary folder, with fresh certificates, to try."""

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
_LOOK_SECONDS = 0.05
_STOP_SECONDS = 10.0
_DIAL_SECONDS = 5.0
_PREFIX = "qanat-demo-"
_LEFT_BEHIND_SECONDS = 60.0
"""Age of a folder without an owner; a younger one may be about to get its lock."""
_FIRST_PORT, _PORTS = 20_000, 10_000
_MAX_PORT_TRIES = 1000
_ROLES = ("agents", "https", "web", "ops", "agent_ops")


@dataclass(frozen=True, slots=True)
class Demo:
    """A running demo. ``service`` is what the web entrance shows."""

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
        """What the web entrance is asked for, in the Host header."""
        return self.url.split("/")[2]

    def curl(self) -> list[str]:
        """A CONNECT through the server with curl, as any proxy-aware program does it."""
        proxy = ["--proxy", f"https://localhost:{self.ports['https']}", "--proxy-cacert", str(self.bundle)]
        return ["curl", "-sp", *proxy, "--proxy-cert", str(self.bundle), f"http://{self.service}.{NODE}/"]

    def commands(self) -> list[list[str]]:
        """Three commands to paste."""
        qanat = ["qanat" if shutil.which("qanat") else _script("qanat"), "--bundle", str(self.bundle)]
        return [self.curl(), [*qanat, "forward", NODE, self.service], [*qanat, "nodes"]]


@asynccontextmanager
async def running_demo(target: Target | None, hurry: trio.Event) -> AsyncIterator[Demo]:
    """Starts both programs and waits until the node is attached; ends them and removes the folder.

    ``target``: what to publish; None for the agent's own status page. ``hurry``: once it is set, the
    programs are killed where they would have been waited for. Raises ``CommandError``.
    """
    remove_left_behind(Path(tempfile.gettempdir()))
    with _folder() as folder, _guard(folder) as guard:
        ports = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
        shown = target or Target(host="127.0.0.1", port=ports["agent_ops"])
        demo = Demo(folder, ports, "web" if target else "status", shown)
        await _prepare(demo, publish=target)
        async with trio.open_nursery() as nursery:
            run = partial(_run_program, guard=guard, hurry=hurry)
            await nursery.start(run, _server(demo, "run"), folder / "server.log")
            await nursery.start(run, _agent(demo), folder / "agent.log")
            await _wait_ready(demo)
            yield demo
            nursery.cancel_scope.cancel()


async def check_target(target: Target) -> None:
    """Dial what the demo is to publish, before anything is started. Raises ``CommandError``."""
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
    """trio raises one ``OSError`` for all addresses of a name, caused by those of each address."""
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved: {error.strerror}"
    inner: BaseException = error.__cause__ or error
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    number = inner.errno if isinstance(inner, OSError) else None
    if number == errno.ECONNREFUSED:
        return "the connection is refused: nothing listens there; start it first"
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"it is unreachable: {os.strerror(number)}"
    return str(getattr(inner, "strerror", None) or inner)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is locked as long as this process lives. Keys are in it: this user alone may enter."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def remove_left_behind(place: Path) -> None:
    """Remove the folders of this user's demos that are gone; one that is locked belongs to a living demo."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_old = time.time() - status.st_mtime > _LEFT_BEHIND_SECONDS
            if status.st_uid == os.getuid() and is_old and _is_unlocked(folder):
                shutil.rmtree(folder)


def _is_unlocked(folder: Path) -> bool:
    """Raises ``OSError`` for what is no folder."""
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
    # The guard gets no output: an inherited pipe would stay open after the demo, and its reader would wait.
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(  # noqa: S603 - our own
        command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, text=True, start_new_session=True
    ) as guard:
        try:
            yield guard
        finally:
            _tell(guard, DONE)


def _tell(guard: subprocess.Popen[str], line: str) -> None:
    assert guard.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it was killed: then there is no guard
        guard.stdin.write(f"{line}\n")
        guard.stdin.flush()


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; all are held until the last is known, so none comes twice.

    They lie below those that Linux and macOS give to whatever asks for any port, for a connection too.
    """
    held: list[socket.socket] = []
    for _ in range(_MAX_PORT_TRIES):
        with contextlib.suppress(OSError):  # taken
            port = _FIRST_PORT + secrets.randbelow(_PORTS)
            held.append(socket.create_server(("127.0.0.1", port)))
        if len(held) == count:
            break
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
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
    """The program that was installed beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        message = f"{name} is not installed beside this program; install Qanat anew"
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
    hurry: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs until cancelled, and then ends it as an operator would: SIGTERM, and in the end SIGKILL."""
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C is for us, who then end both programs in their order.
            process_group=0,
        )
        try:
            _tell(guard, str(process.pid))
            task_status.started()
            await process.wait()
        finally:
            await _end(process, hurry)
    raise _failure(f"{Path(command[0]).name} ended:", log)


def _failure(what: str, log: Path) -> CommandError:
    tail = log.read_text(errors="replace").strip().splitlines()[-5:]
    return CommandError(ExitCode.FAILED, "\n".join([what, *tail]))


async def _end(process: trio.Process, hurry: trio.Event) -> None:
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
        with trio.move_on_after(_STOP_SECONDS):
            await _wait_either(process, hurry)
        if process.poll() is None:
            process.kill()
            await process.wait()


async def _wait_either(process: trio.Process, hurry: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait_hurry() -> None:
            await hurry.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_hurry)
        await process.wait()
        nursery.cancel_scope.cancel()


async def _wait_ready(demo: Demo) -> None:
    """Ready is the agent's word: it is attached."""
    with trio.move_on_after(_START_SECONDS):
        while await _status(demo.ports["agent_ops"], "/readyz") != 200:  # noqa: ASYNC110 - another process
            await trio.sleep(_LOOK_SECONDS)
        return
    raise _failure("the agent did not attach:", demo.folder / "agent.log")


async def _status(port: int, path: str, host: str = "localhost") -> int:
    """The status of a GET on loopback; 0 if nobody answers."""
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
    """Tries the demo's own promises through the tunnel: what was tried, and whether it worked."""
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
