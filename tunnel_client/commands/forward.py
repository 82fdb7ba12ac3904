"""``qanat forward``: a local port that leads to a target on a node."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
import trio

from tunnel_client.access import Access
from tunnel_client.commands.names import complete_node, complete_target
from tunnel_client.commands.options import access, bundle_option, json_option, parse_request, run
from tunnel_client.forwarding import MAX_CONNECTIONS, connections_for, listen
from tunnel_client.forwarding import forward as serve_forward
from tunnel_client.node_facts import Item, ask_node, category_of, items_of, text_of
from tunnel_client.tunnel import TunnelRequest
from tunnel_core.cli.command_line import CommandError, ExitCode, print_json, printable
from tunnel_core.config.types import ListenAddress
from tunnel_core.names import join_host_port, split_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.runtime.ending import ending_signals
from tunnel_core.runtime.fd_limits import raise_descriptor_limit
from tunnel_core.session.state import StateCategory
from tunnel_core.streams.sockets import why_not_listening
from tunnel_core.telemetry.queued_output import queue_standard_error

_COMMANDS = {
    22: "ssh -p {port} {host}",
    3306: "mysql -h {host} -P {port}",
    5432: "psql -h {host} -p {port}",
    6379: "redis-cli -h {host} -p {port}",
}
_HTTPS_PORTS = frozenset({443, 6443, 8443, 10250})
_PLAIN_PORTS = frozenset({25, 143, 1883, 5672, 9092})


@click.command("forward")
@click.argument("node", shell_complete=complete_node)
@click.argument("target", shell_complete=complete_target)
@click.argument("local", default="127.0.0.1:0")
@click.option(
    "--max-connections",
    type=click.IntRange(1, 65_536),
    default=MAX_CONNECTIONS,
    show_default=True,
    help="Connections at once. Further ones are reset, with a line on standard error.",
)
@bundle_option
@json_option
def forward(
    node: str, target: str, local: str, max_connections: int, bundle: Path | None, as_json: bool
) -> None:
    """Listen on LOCAL and forward every connection to TARGET on NODE, until Ctrl-C.

    TARGET is a port of the node, host:port, [v6]:port, unix:/path, or a service's name.
    LOCAL is a port or an address with a port; without it the system chooses a port on 127.0.0.1.

    \b
    Examples:
      qanat forward edge1 8080
      qanat forward edge1 web 8080
      qanat forward edge1 db.local:5432 127.0.0.1:5432
      qanat forward edge1 unix:/run/docker.sock 2375
    """
    request = parse_request(node, target)
    host, port = _local(local)
    run(_forward, access(bundle), request, host, port, _possible_connections(max_connections), as_json)


def _local(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        # The parser of addresses refuses port 0, because a client cannot connect to it.
        name, number = split_host_port(f"{host or '127.0.0.1'}:{'1' if port == '0' else port}")
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, f"LOCAL: {error}; write a port or host:port") from None
    return name, 0 if port == "0" else number


def _possible_connections(wanted: int) -> int:
    """Return the number of connections that this process can have. Report a number below ``wanted``."""
    limit = raise_descriptor_limit()
    possible = connections_for(limit.now, wanted)
    if possible < wanted:
        _report(
            f"{limit.now} file descriptors suffice for {possible} connections at once, not {wanted};"
            " see: ulimit -n"
        )
    return possible


async def _forward(
    entrances: Access, request: TunnelRequest, host: str, port: int, max_connections: int, as_json: bool
) -> None:
    dialer = entrances.need_connect()
    await _check_node(entrances, request)
    listener = await _listen(host, port)
    queue_standard_error()  # Each connection that fails writes a line.
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            _announce(listener, request, as_json)
            nursery.start_soon(serve_forward, listener, dialer, request, _report, max_connections)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _check_node(entrances: Access, request: TunnelRequest) -> None:
    """Raise ``Refused`` now if every connection would be refused.

    If the API cannot be reached, each connection gets its own refusal later.
    """
    if entrances.api is None:
        return
    node = (await ask_node(entrances.api, request.node)).get("node") or {}
    category = category_of(node)
    if category is StateCategory.ABSENT:
        raise _why_absent(node, text_of(node, "name") or request.node)
    if category is StateCategory.WAITING:
        _report(f"node {request.node} has lost its link; connections wait for it; see: qanat nodes")
    if category is StateCategory.REACHABLE:
        _refuse_unknown_service(node, request)


def _why_absent(node: Item, name: str) -> Refused:
    if node.get("revoked"):
        cure = f"on the server: qanat-server node unrevoke {name}, or qanat-server token create --node {name}"
        return Refused(Reason.REVOKED, f"node {name} was revoked; {cure}")
    return Refused(Reason.NODE_NOT_ATTACHED, f"node {name} has no agent attached; see: qanat nodes")


def _refuse_unknown_service(node: Item, request: TunnelRequest) -> None:
    """Raise ``Refused`` if the node does not publish the requested service."""
    if not request.target.service or not isinstance(node.get("services"), list):
        return
    names = sorted(text_of(service, "name") for service in items_of(node, "services"))
    if request.target.service not in names:
        detail = f"node {request.node} publishes no service {request.target.service}"
        raise Refused(Reason.UNKNOWN_SERVICE, f"{detail}; it publishes: {', '.join(names) or 'none'}")


async def _listen(host: str, port: int) -> trio.SocketListener:
    try:
        return await listen(host, port)
    except OSError as error:
        message = f"cannot listen on {join_host_port(host, port)}: {why_not_listening(error, port)}"
        raise CommandError(ExitCode.FAILED, message) from None


def _announce(listener: trio.SocketListener, request: TunnelRequest, as_json: bool) -> None:
    host, port, *_ = listener.socket.getsockname()
    address = ListenAddress(host, port)
    if as_json:
        print_json({"listen": str(address), "node": request.node, "target": str(request.target)})
        return
    if not address.is_loopback:
        click.echo(f"Every client that reaches {address} uses your access.", err=True)
    click.echo(f"{address} leads to {request.target} on {request.node} until Ctrl-C. Try:")
    click.echo(f"  {command_for(request, host, port)}")


def command_for(request: TunnelRequest, host: str, port: int) -> str:
    """Return a command to paste, for the protocol that is usual on the target's port."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    known = _COMMANDS.get(request.target.port)
    if known:
        return known.format(host=host, port=port)
    if request.target.port in _PLAIN_PORTS:
        return f"nc {host} {port}"
    is_https = request.target.port in _HTTPS_PORTS
    return f"curl {'-k https' if is_https else 'http'}://{join_host_port(host, port)}/"


def _report(sentence: str) -> None:
    with contextlib.suppress(OSError):  # A closed terminal must not end connections.
        click.echo(f"qanat: {printable(sentence)}", err=True)
