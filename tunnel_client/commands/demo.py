"""``qanat demo``: a server and an agent on this machine, to try Qanat."""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping

import click
import trio

from tunnel_client.demo import NODE, Demo, check_demo, check_target, running_demo
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.cli.terminal import styled
from tunnel_core.names import Target
from tunnel_core.runtime import ending
from tunnel_core.runtime.startup import settle_output

_OUTPUT = 1
_FORM = "--target takes HOST:PORT or unix:/PATH, for example --target 127.0.0.1:8080"


@click.command("demo")
@click.option("--target", metavar="HOST:PORT", help="Publish this instead of the agent's status page.")
@click.option("--once", is_flag=True, help="Check the demo through the tunnel and end: exit code 0 or 1.")
def demo(target: str | None, once: bool) -> None:
    """Run a server and an agent on this machine, with fresh certificates in a temporary folder.

    It ends at Ctrl-C, at SIGTERM and with its terminal, and removes all its files.

    \b
    Examples:
      qanat demo
      qanat demo --target 127.0.0.1:1880
      qanat demo --once
    """
    wanted = _parse(target) if target else None
    try:
        code = trio.run(_until_signal, wanted, once)
    except* CommandError as group:
        raise _first(group) from None
    except* OSError as failed:
        if not ending.is_hung_up(_OUTPUT):
            raise
        settle_output()  # The terminal has closed, so the user cannot see a message.
        raise SystemExit(ExitCode.FAILED) from failed
    click.get_current_context().exit(code)


def _parse(text: str) -> Target:
    try:
        target = Target.parse(text)
    except ValueError:
        raise CommandError(ExitCode.USAGE, f"{_FORM}, not {text[:300]!r}") from None
    if target.service:
        raise CommandError(ExitCode.USAGE, f"{_FORM}, not {text[:300]!r}")
    return target


def _first(group: BaseExceptionGroup[CommandError]) -> CommandError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, CommandError)
    return error


async def _until_signal(target: Target | None, once: bool) -> int:
    """Run the demo until a signal, and return the exit code.

    Signals are handled from before the first file is written until the last one is removed.
    """
    ended: list[int] = []
    kill_now = trio.Event()
    with trio.open_signal_receiver(*ending.ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_take_signals, signals, ended, scope, kill_now)
                nursery.start_soon(_end_with_output, ended, scope)
                await _demo(target, once, kill_now)
            nursery.cancel_scope.cancel()
    if not ended:
        return ExitCode.OK
    if ended[0] == signal.SIGINT:
        click.echo("\nEnded; all files are removed.")
    return ending.exit_code_of(ended[0])


async def _take_signals(
    signals: AsyncIterator[int], ended: list[int], scope: trio.CancelScope, kill_now: trio.Event
) -> None:
    """End the demo at the first signal. At the second signal, kill programs that are still ending."""
    async for number in signals:
        if ended:
            kill_now.set()
        ended.append(number)
        scope.cancel()


async def _end_with_output(ended: list[int], scope: trio.CancelScope) -> None:
    """End the demo when its terminal or pipe closes, even without a SIGHUP, for example under ssh."""
    await ending.wait_hung_up(_OUTPUT)
    ended.append(signal.SIGHUP)
    scope.cancel()


async def _demo(target: Target | None, once: bool, kill_now: trio.Event) -> None:
    if target is not None:
        await check_target(target)
    click.echo("Making certificates, starting a server and an agent ...")
    started = time.monotonic()
    async with running_demo(target, kill_now) as running:
        click.echo(f"{_attached(running, time.monotonic() - started)}\n")
        if not once:
            click.echo("\n".join(_welcome(running, os.environ)))
            await trio.sleep_forever()
        results = await check_demo(running)
    for what, worked in results:
        click.echo(f"{'PASS' if worked else 'FAIL'}  {what}")
    if not all(worked for _, worked in results):
        raise CommandError(ExitCode.FAILED, "a check of the demo failed")
    click.echo("\nEnded; all files are removed. Without --once the demo keeps running, with a URL to open.")


def _attached(running: Demo, seconds: float) -> str:
    shown = "its own status page" if running.service == "status" else str(running.target)
    return f"Node {NODE} is attached ({seconds:.1f} s) and publishes {shown}."


def _welcome(running: Demo, environ: Mapping[str, str]) -> Iterator[str]:
    yield f"Open in a browser:\n  {styled(running.url, bold=True)}"
    if line := forward_line(running.ports["web"], environ):
        yield f"You are connected by ssh: run this where the browser is, and open the URL there:\n  {line}"
    other = ["wget", "-qO-", f"--header=Host: {running.host}", f"http://127.0.0.1:{running.ports['web']}/"]
    yield "\nOr paste:"
    yield from (f"  {shlex.join(command)}" for command in running.commands())
    yield "\nBrowsers and curl resolve *.localhost by themselves. For other programs, pass the host name:"
    yield f"  {shlex.join(other)}"
    if running.service == "status":
        yield "\nAdd --target HOST:PORT to publish your own program, for example --target 127.0.0.1:8080."
    yield "\nCtrl-C ends it and removes all its files."


def forward_line(port: int, environ: Mapping[str, str]) -> str:
    """Return the ssh command that forwards a port of this machine to the user's machine; empty without ssh.

    The command has the address that this machine sees. Behind NAT the user must replace it.
    """
    fields = environ.get("SSH_CONNECTION", "").split()  # client, its port, server, its port: ssh(1)
    if len(fields) != 4:
        return ""
    _, _, server, ssh_port = fields
    user = environ.get("SUDO_USER") or _user_name()
    named = ["-p", ssh_port] if ssh_port != "22" else []
    login = f"{user}@{server}" if user else server
    return shlex.join(["ssh", *named, "-L", f"{port}:127.0.0.1:{port}", login])


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # The user id has no name, for example in a container.
        return ""
