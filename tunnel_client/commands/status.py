"""``qanat status``: one page on the server, its nodes, certificates, and what needs attention."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from certs.validity import validity_of
from tunnel_client.access import own_bundle
from tunnel_client.api import ask, ask_nodes
from tunnel_client.commands.options import access, bundle_option, json_option, named_bundle, run
from tunnel_client.dial import Dialer
from tunnel_client.node_facts import ask_if_there
from tunnel_client.status import UserCertificate, from_pages, lines_of, page_of
from tunnel_core.cli.command_line import print_json
from tunnel_core.cli.terminal import line_width


@click.command("status")
@bundle_option
@json_option
def status(bundle: Path | None, as_json: bool) -> None:
    """Show the server, its nodes, the ends of certificates, and warnings with their cures.

    The exit code is 0 if the server answers. For scripts: "warnings" of --json is empty without a problem.

    \b
    Examples:
      qanat status
      qanat status --json | jq -e '.warnings == []'
    """
    dialer = access(bundle).need_api()
    now = datetime.now(UTC)
    page = page_of(run(_ask_status, dialer), _own(bundle), metadata.version("qanat"), now)
    print_json(page) if as_json else click.echo("\n".join(lines_of(page, dialer.name, now, line_width())))


async def _ask_status(dialer: Dialer) -> dict[str, Any]:
    if status := await ask_if_there(dialer, "status"):
        return status
    version, nodes = await ask(dialer, "version"), await ask_nodes(dialer)
    return from_pages(version, nodes, await ask_if_there(dialer, "streams"))


def _own(bundle: Path | None) -> UserCertificate | None:
    own = own_bundle(named_bundle(bundle))
    return UserCertificate(own.identity.name, validity_of(own.chain_pem)) if own else None
