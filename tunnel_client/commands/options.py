"""Options and error handling that the subcommands share."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
import trio

from tunnel_client.access import Access, find_access
from tunnel_client.dial import ServerUnreachable
from tunnel_client.tunnel import TunnelRequest
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.identity import Role, why_no_name
from tunnel_core.names import is_node_name
from tunnel_core.reasons import Refused
from tunnel_core.runtime.ending import STANDARD_OUTPUT, ending_signals, is_hung_up, wait_hung_up
from tunnel_core.runtime.startup import settle_output

P = ParamSpec("P")
T = TypeVar("T")

bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="The bundle with your certificate. [default: $QANAT_BUNDLE, your config folder's, a local socket]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def access(bundle: Path | None) -> Access:
    """Return the access by ``--bundle`` after or before the subcommand's name. Raises ``CommandError``."""
    return find_access(named_bundle(bundle))


def named_bundle(bundle: Path | None) -> Path | None:
    """Return the bundle that the command line names, after or before the subcommand's name."""
    named: Path | None = bundle or click.get_current_context().find_root().params.get("bundle")
    return named


def parse_request(node: str, target: str) -> TunnelRequest:
    """Parse the arguments NODE and TARGET. Raises ``CommandError``."""
    if not is_node_name(node):
        raise CommandError(ExitCode.USAGE, why_no_name(Role.NODE, node))
    try:
        return TunnelRequest.parse(node, target)
    except ValueError as error:
        forms = "write a port, host:port, [v6]:port, unix:/path or a service's name"
        raise CommandError(ExitCode.USAGE, f"TARGET: {error}; {forms}") from None


def run(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the function in trio. Raise its ``Refused`` and ``ServerUnreachable`` as ``CommandError``."""

    async def call() -> T:
        return await function(*args, **kwargs)

    try:
        return trio.run(call)
    except Refused as refused:
        raise CommandError.refused(refused) from None
    except ServerUnreachable as error:
        raise CommandError(ExitCode.UNREACHABLE, str(error)) from None


def run_until_signal(function: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run the function until its end, a signal, or a closed standard output.

    A signal is the ordinary end. If standard output closes, the exit code is 1. So
    ``events --follow | head -1`` ends at once, and not only at the next event.
    """

    async def call() -> None:
        await _until_signal(lambda: function(*args, **kwargs))

    run(call)
    if is_hung_up(STANDARD_OUTPUT):
        settle_output()
        sys.exit(ExitCode.FAILED)


async def _until_signal(function: Callable[[], Awaitable[None]]) -> None:
    failure: Exception | None = None
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            nursery.start_soon(_cancel_without_reader, nursery.cancel_scope)
            try:
                await function()
            except Exception as error:  # Raised after the nursery, which would wrap it in a group.
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None and not is_hung_up(STANDARD_OUTPUT):
        raise failure


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def _cancel_without_reader(scope: trio.CancelScope) -> None:
    await wait_hung_up(STANDARD_OUTPUT)
    scope.cancel()
