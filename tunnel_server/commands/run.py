"""``qanat-server run``: serve until a signal says otherwise."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import click
import trio

from tunnel_core import logs, paths
from tunnel_core.carrier import CarrierFailed
from tunnel_core.command_line import CommandError, ExitCode
from tunnel_core.config import ConfigError, load
from tunnel_core.logs import log_event
from tunnel_server.app import Server, run_server
from tunnel_server.binding import CannotListen
from tunnel_server.config import ServerConfig

_log = logging.getLogger("qanat.server")


@click.command("run")
@click.option("--config", type=click.Path(path_type=Path), help="[default: /etc/qanat/server.toml for root]")
def command(config: Path | None) -> None:
    """Serve agents and users. SIGTERM drains: streams get drain_seconds to finish.

    \b
    Examples:
      qanat-server run
      qanat-server run --config ./try/server.toml
    """
    path = config or paths.server_config_file()
    try:
        loaded = load(path, ServerConfig)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    logs.setup(loaded.log.level, loaded.log.format)
    try:
        trio.run(run_server, loaded, _say_ready)
    except* (CannotListen, CarrierFailed, OSError, ssl.SSLError) as group:
        raise CommandError(ExitCode.FAILED, "; ".join(map(str, _leaves(group)))) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _say_ready(server: Server) -> None:
    fields = {"agents": ", ".join(server.agent_addresses), "ops": ", ".join(server.ops_addresses)}
    for listener in server.listeners:
        known = fields.get(listener.entrance)
        fields[listener.entrance] = ", ".join([*([known] if known else []), *listener.addresses])
    log_event(_log, logging.INFO, "ready", **fields)
