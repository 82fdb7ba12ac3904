"""Options and endings that the subcommands share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
import trio

from tunnel_client.access import Access, find_access
from tunnel_client.dial import ServerUnreachable
from tunnel_client.tunnel import Wish
from tunnel_core.command_line import CommandError, ExitCode
from tunnel_core.identity import Role, why_no_name
from tunnel_core.names import is_node_name
from tunnel_core.reasons import Refused

P = ParamSpec("P")
T = TypeVar("T")

bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="The bundle to come in with. [default: $QANAT_BUNDLE, your config folder's, a local socket]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def access(bundle: Path | None) -> Access:
    """The way in by this subcommand's ``--bundle``, or by the one before the subcommand's name."""
    context = click.get_current_context()
    return find_access(bundle or context.find_root().params.get("bundle"))


def parse_wish(node: str, target: str) -> Wish:
    if not is_node_name(node):
        raise CommandError(ExitCode.USAGE, why_no_name(Role.NODE, node))
    try:
        return Wish.parse(node, target)
    except ValueError as error:
        forms = "write a port, host:port, [v6]:port, unix:/path or a service's name"
        raise CommandError(ExitCode.USAGE, f"TARGET: {error}; {forms}") from None


def run(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs the function in trio; what it raises ends the command with its exit code."""

    async def call() -> T:
        return await function(*args, **kwargs)

    try:
        return trio.run(call)
    except Refused as refused:
        raise CommandError.refused(refused) from None
    except ServerUnreachable as error:
        raise CommandError(ExitCode.UNREACHABLE, str(error)) from None
