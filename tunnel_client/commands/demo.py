"""``qanat demo``: everything on this machine, to look at."""

from __future__ import annotations

import shlex
import time

import click
import trio

from tunnel_client.demo import NODE, Demo, check_demo, running_demo
from tunnel_core.command_line import CommandError, ExitCode
from tunnel_core.names import Target
from tunnel_core.terminal import styled


@click.command("demo")
@click.option("--target", metavar="HOST:PORT", help="What to publish instead of the agent's status page.")
@click.option("--once", is_flag=True, help="Check it through the tunnel and end: exit code 0 or 1.")
def demo(target: str | None, once: bool) -> None:
    """Run a server and an agent on this machine, with fresh certificates in a temporary folder.

    \b
    Examples:
      qanat demo
      qanat demo --target 127.0.0.1:1880
      qanat demo --once
    """
    wanted = _parse(target) if target else None
    click.echo("Making certificates, starting a server and an agent ...")
    try:
        trio.run(_demo, wanted, once)
    except* CommandError as group:
        raise _first(group) from None
    except* KeyboardInterrupt:
        click.echo("\nEnded; nothing is left.")


def _parse(text: str) -> Target:
    try:
        target = Target.parse(text)
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, f"--target: {error}") from None
    if target.service:
        raise CommandError(ExitCode.USAGE, f"--target: {text} is not host:port")
    return target


def _first(group: BaseExceptionGroup[CommandError]) -> CommandError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, CommandError)
    return error


async def _demo(target: Target | None, once: bool) -> None:
    started = time.monotonic()
    async with running_demo(target) as running:
        _print_welcome(running, time.monotonic() - started)
        if not once:
            click.echo("\nCtrl-C ends it and leaves nothing behind.")
            await trio.sleep_forever()
        results = await check_demo(running)
    for what, worked in results:
        click.echo(f"{'PASS' if worked else 'FAIL'}  {what}")
    if not all(worked for _, worked in results):
        raise CommandError(ExitCode.FAILED, "the demo does not do what it promises")


def _print_welcome(running: Demo, seconds: float) -> None:
    shown = "its own status page" if running.service == "status" else str(running.target)
    click.echo(f"Node {NODE} is attached ({seconds:.1f} s) and publishes {shown}.\n")
    click.echo("Open in a browser:\n  " + styled(running.url, bold=True))
    click.echo("\nOr paste:")
    for command in running.commands():
        click.echo("  " + shlex.join(command))
