"""``qanat forward``: a local port that leads to a target on a node."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
import trio

from tunnel_client.access import Access
from tunnel_client.commands.names import complete_node, complete_target
from tunnel_client.commands.options import access, bundle_option, json_option, parse_wish, run
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
    help="Connections at once. One more is reset, with a line on standard error.",
)
@bundle_option
@json_option
def forward(
    node: str, target: str, local: str, max_connections: int, bundle: Path | None, as_json: bool
) -> None:
    """Listen on LOCAL and carry every connection to TARGET on NODE, until Ctrl-C.

    TARGET is a port of the node, host:port, [v6]:port, unix:/path, or a service's name.
    LOCAL is a port or an address with a port; without it the system chooses a port on 127.0.0.1.

    \b
    Examples:
      qanat forward edge1 8080
      qanat forward edge1 web 8080
      qanat forward edge1 db.local:5432 127.0.0.1:5432
      qanat forward edge1 unix:/run/docker.sock 2375
    """
    wish = parse_wish(node, target)
    host, port = _local(local)
    run(_forward, access(bundle), wish, host, port, _carried(max_connections), as_json)


def _local(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    try:
        # Port 0 is no port to connect to, so the parser of addresses knows no such thing.
        name, number = split_host_port(f"{host or '127.0.0.1'}:{'1' if port == '0' else port}")
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, f"LOCAL: {error}; write a port or host:port") from None
    return name, 0 if port == "0" else number


def _carried(wanted: int) -> int:
    """Return how many connections this process can carry; report it if that is fewer than ``wanted``."""
    limit = raise_descriptor_limit()
    most = connections_for(limit.now, wanted)
    if most < wanted:
        _report(
            f"{limit.now} file descriptors carry {most} connections at once, not {wanted}; see: ulimit -n"
        )
    return most


async def _forward(
    ways: Access, wish: TunnelRequest, host: str, port: int, max_connections: int, as_json: bool
) -> None:
    dialer = ways.need_connect()
    await _refuse_what_cannot_work(ways, wish)
    listener = await _listen(host, port)
    queue_standard_error()  # each connection that fails writes a line
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            _announce(listener, wish, as_json)
            nursery.start_soon(serve_forward, listener, dialer, wish, _report, max_connections)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _refuse_what_cannot_work(ways: Access, wish: TunnelRequest) -> None:
    """Raises ``Refused`` at once with what each connection would be told.

    Where the API is out of reach, each connection is told by itself.
    """
    if ways.api is None:
        return
    node = (await ask_node(ways.api, wish.node)).get("node") or {}
    category = category_of(node)
    if category is StateCategory.ABSENT:
        raise _why_absent(node, text_of(node, "name") or wish.node)
    if category is StateCategory.WAITING:
        _report(f"node {wish.node} has lost its link; connections work when it is back; see: qanat nodes")
    if category is StateCategory.REACHABLE:
        _refuse_unknown_service(node, wish)


def _why_absent(node: Item, name: str) -> Refused:
    if node.get("revoked"):
        cure = f"on the server: qanat-server node unrevoke {name}, or qanat-server token create --node {name}"
        return Refused(Reason.REVOKED, f"node {name} was revoked; {cure}")
    return Refused(Reason.NODE_NOT_ATTACHED, f"node {name} has no agent attached; see: qanat nodes")


def _refuse_unknown_service(node: Item, wish: TunnelRequest) -> None:
    """Raises ``Refused`` if the node is known not to publish the service that is wanted."""
    if not wish.target.service or not isinstance(node.get("services"), list):
        return
    names = sorted(text_of(one, "name") for one in items_of(node, "services"))
    if wish.target.service not in names:
        detail = f"node {wish.node} publishes no service {wish.target.service}"
        raise Refused(Reason.UNKNOWN_SERVICE, f"{detail}; it publishes: {', '.join(names) or 'none'}")


async def _listen(host: str, port: int) -> trio.SocketListener:
    try:
        return await listen(host, port)
    except OSError as error:
        message = f"cannot listen on {join_host_port(host, port)}: {why_not_listening(error, port)}"
        raise CommandError(ExitCode.FAILED, message) from None


def _announce(listener: trio.SocketListener, wish: TunnelRequest, as_json: bool) -> None:
    host, port, *_ = listener.socket.getsockname()
    address = ListenAddress(host, port)
    if as_json:
        print_json({"listen": str(address), "node": wish.node, "target": str(wish.target)})
        return
    if not address.is_loopback:
        click.echo(f"Whoever reaches {address} comes in as you.", err=True)
    click.echo(f"{address} leads to {wish.target} on {wish.node} until Ctrl-C. Try:")
    click.echo(f"  {command_for(wish, host, port)}")


def command_for(wish: TunnelRequest, host: str, port: int) -> str:
    """A command to paste that speaks what is probably spoken at the target."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    known = _COMMANDS.get(wish.target.port)
    if known:
        return known.format(host=host, port=port)
    if wish.target.port in _PLAIN_PORTS:
        return f"nc {host} {port}"
    secure = wish.target.port in _HTTPS_PORTS
    return f"curl {'-k https' if secure else 'http'}://{join_host_port(host, port)}/"


def _report(sentence: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed ends no connection
        click.echo(f"qanat: {printable(sentence)}", err=True)
