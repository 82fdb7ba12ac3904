"""Access of commands to the store: directly while no server runs, or over the server's admin socket."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import trio

from certs.file_owner import as_owner
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.config import paths
from tunnel_core.config.loader import ConfigError, load
from tunnel_core.identity import Role, is_identity_name, why_no_name
from tunnel_core.reasons import Refused
from tunnel_server.admin.actions import READS, WRITES, Actions
from tunnel_server.admin.arguments import Arguments
from tunnel_server.commands.server_client import NoServer, ask_server
from tunnel_server.config import ServerConfig
from tunnel_server.store.database import failures
from tunnel_server.store.lock import PATIENCE_SECONDS, RETRY_SECONDS, StoreHeld, hold_store
from tunnel_server.store.settings import settings_of
from tunnel_server.store.store import open_store

Json = dict[str, Any]

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=paths.config_option_help("server.toml"),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def load_config(file: Path | None) -> ServerConfig:
    """Load the configuration of the server on this machine. Raises ``CommandError``."""
    path = file or paths.server_config_file()
    try:
        return load(path, ServerConfig, absent_fix=absent_fix(file, path))
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None


def absent_fix(named: Path | None, path: Path) -> str:
    """Return the remedy for a missing configuration at ``path``."""
    where = f" --config {shlex.quote(str(path))}" if named else ""
    make = f"make a server: qanat-server init --name tunnel.example.com{where}"
    return paths.or_as_root(path, f"run this on the server's machine, or {make}")


def checked_name(role: Role, name: str) -> str:
    """Return ``name`` if a node or user may have it. Raises ``CommandError`` with the rule for names."""
    if not is_identity_name(role, name):
        raise CommandError(ExitCode.USAGE, why_no_name(role, name))
    return name


def perform(config_file: Path | None, method: str, path: str, arguments: Mapping[str, Any]) -> Json:
    """Perform the action of ``method`` (``GET`` or ``POST``) and ``path``, and return its answer.

    Raises ``CommandError``.
    """
    config = load_config(config_file)
    try:
        return trio.run(_perform, config, method, path, arguments)
    except Refused as refused:
        raise CommandError.refused(refused) from None
    except NoServer as error:
        raise CommandError(ExitCode.UNREACHABLE, str(error)) from None


async def _perform(config: ServerConfig, method: str, path: str, arguments: Mapping[str, Any]) -> Json:
    """Perform the action. Retry while another command holds the store, or while a server starts."""
    deadline = trio.current_time() + PATIENCE_SECONDS
    while True:
        try:
            # As root, this process would follow symbolic links of the server's user.
            with hold_store(config.data_dir), as_owner(config.data_dir):
                return await _without_server(config, method, path, arguments)
        except StoreHeld as held:
            holder = str(held)
        try:
            return await ask_server(config.admin.socket, method, path, arguments)
        except NoServer as error:
            if not error.is_closed or trio.current_time() >= deadline:
                raise NoServer(f"{holder}, and {error}") from None
        await trio.sleep(RETRY_SECONDS)


async def _without_server(config: ServerConfig, method: str, path: str, arguments: Mapping[str, Any]) -> Json:
    with failures(config.data_dir):
        store = open_store(settings_of(config), lambda: datetime.now(UTC))
    action = (READS if method == "GET" else WRITES)[path]
    refused: Refused | None = None
    answer: Json = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.serve)
        try:
            answer = await action(
                Actions.without_server(config, store), Arguments(arguments), f"uid-{os.getuid()}"
            )
        except Refused as error:  # Raised after the nursery, which would wrap it in a group.
            refused = error
        finally:
            await store.aclose()
    if refused is not None:
        raise refused
    return answer
