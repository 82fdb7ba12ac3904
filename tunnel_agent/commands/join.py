"""``qanat-agent join``: a token becomes a node that is attached."""

from __future__ import annotations

import os
import socket
import sys
import tomllib
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import trio

from certs.bundle import Bundle
from certs.life import life_of
from tunnel_agent.certificate.node_places import Files
from tunnel_agent.checks import CheckFailed, CheckResult
from tunnel_agent.commands.check import print_finding
from tunnel_agent.commands.options import config_option, json_option
from tunnel_agent.config import AgentConfig, Protocol
from tunnel_agent.installation import load_config, load_proxy
from tunnel_agent.join.config_text import config_text
from tunnel_agent.join.join import Joined, Joining
from tunnel_agent.join.places import files_of
from tunnel_agent.join.request import JoinRequest, parse_server, parse_service
from tunnel_core.cli.command_line import CommandError, ExitCode, print_json
from tunnel_core.config import paths
from tunnel_core.config.loader import ConfigError, read
from tunnel_core.humanize import as_iso, as_minute
from tunnel_core.text_files import NotPlainText, read_text_file, text_of, trouble_with

_MAX_TOKEN_BYTES = 4096
_OPTIONS = "--allow and --service"
_GIVE_TOKEN = "echo TOKEN | qanat-agent join SERVER, or --token-file FILE"  # noqa: S105 - it says where to give one


@click.command("join")
@click.argument("server")
@click.option(
    "--name", default="", metavar="NODE", help="The node's name. [default: the token's, else the host name]"
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME=URL",
    help="Publish http://, https:// or tcp://HOST:PORT, or unix:/PATH. May be repeated.",
)
@click.option("--allow", multiple=True, metavar="TARGET", help="HOST:PORT that may be reached; repeatable.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Holds the token. [default: standard input, or a question]",
)
@config_option
@click.option("--again", is_flag=True, help="Join anew although this machine has joined: needs a new token.")
@json_option
def command(
    server: str,
    name: str,
    services: tuple[str, ...],
    allow: tuple[str, ...],
    token_file: Path | None,
    config: Path | None,
    again: bool,
    as_json: bool,
) -> None:
    """Join SERVER (host or host:port of its HTTPS port) with a token from `qanat-server token create`.

    The token comes from standard input, never from the command line, and names the node. Everything is
    checked before it is used; if this breaks off, run it again with the same token. A machine that has
    joined already is left as it is.

    \b
    Examples:
      echo TOKEN | qanat-agent join tunnel.example.com
      echo TOKEN | qanat-agent join tunnel.example.com --service web=http://127.0.0.1:1880
      qanat-agent join tunnel.example.com:7002 --token-file token --allow localhost:22
    """
    wish = _wish(server, name, services, allow)
    try:
        files, loaded = _files(wish, config)
        proxies = load_proxy(files.config, loaded)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    findings: list[CheckResult] = []
    joining = Joining(
        wish,
        files,
        loaded,
        proxies,
        findings.append if as_json else print_finding,
        lambda: _read_token(token_file),
        lambda: datetime.now(UTC),
        host=socket.gethostname().lower(),
        again=again,
    )
    joined = _run(joining)
    if as_json:
        print_json(_as_json(joined, files, loaded, findings))
    elif joined.bundle is not None:
        click.echo(_as_text(joined, joined.bundle, files, wish, loaded))
    click.get_current_context().exit(joined.code)


def _run(joining: Joining) -> Joined:
    """Raises ``CommandError`` after Ctrl-C."""
    joined = None
    try:
        joined = trio.run(joining.run)
    except* KeyboardInterrupt:
        pass
    if joined is None:
        message = "interrupted; run the same line again: what was done is kept, and the token is not lost"
        raise CommandError(ExitCode.INTERRUPTED, message)
    return joined


def _wish(server: str, node: str, services: tuple[str, ...], allow: tuple[str, ...]) -> JoinRequest:
    try:
        return JoinRequest(parse_server(server), node, tuple(map(parse_service, services)), allow)
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None


def _files(wish: JoinRequest, config: Path | None) -> tuple[Files, AgentConfig]:
    """Where the files are or will be, and the configuration as it will hold. Raises ``ConfigError``."""
    files = files_of(config)
    try:
        new = read(tomllib.loads(config_text(wish, str(files.bundle))), files.config, AgentConfig)
    except ConfigError as error:  # what the options ask for: there is no such file yet
        raise ConfigError(tuple(replace(one, file=_OPTIONS) for one in error.problems)) from None
    return files, load_config(files.config, required=True) if os.path.lexists(files.config) else new


def _read_token(file: Path | None) -> str:
    """From the file, a pipe, or a question that shows nothing. Raises ``CheckFailed``."""
    if file is not None:
        try:
            return read_text_file(file, _MAX_TOKEN_BYTES)
        except (OSError, NotPlainText) as error:
            raise CheckFailed(trouble_with(file, error), "name a file with the token") from None
    if sys.stdin is None:
        raise CheckFailed("standard input is closed, so no token comes from there", _GIVE_TOKEN)
    if sys.stdin.isatty():
        answer: str = click.prompt("Token", hide_input=True)
        return answer
    try:
        return text_of(sys.stdin.buffer.read(_MAX_TOKEN_BYTES))
    except (OSError, NotPlainText) as error:
        said = error if isinstance(error, NotPlainText) else f"cannot be read: {error.strerror}"
        raise CheckFailed(f"standard input {said}", _GIVE_TOKEN) from None


def _next_steps(node: str, files: Files, config: AgentConfig) -> list[str]:
    named = paths.config_argument(files.config, paths.agent_config_file())
    steps = [f"qanat-agent run{named}", f"qanat-agent status{named}"]
    for service in config.service[:3]:
        if service.protocol is not Protocol.TCP:
            steps.append(
                f"qanat forward {node} {service.name} 8080  # from where you are, then open 127.0.0.1:8080"
            )
        else:
            steps.append(f"qanat forward {node} {service.name}  # from where you are")
    single = [target for entry in config.allow if (target := entry.single_target()) is not None]
    steps += [f"qanat forward {node} {target}  # from where you are" for target in single[:3]]
    return steps


def _as_text(joined: Joined, bundle: Bundle, files: Files, wish: JoinRequest, config: AgentConfig) -> str:
    node, life = bundle.identity.name, life_of(bundle.chain_pem)
    notes = "".join(f"{note}\n\n" for note in joined.notes)
    steps = "\n".join(f"  {step}" for step in _next_steps(node, files, config))
    ends = as_minute(life.ends)
    return (
        f"\n{notes}Node {node} has joined, until {ends}; the agent renews that by itself.\n"
        f"\nNext:\n{steps}\n\n{_service_step(files)}"
    )


def _service_step(files: Files) -> str:
    if not paths.is_system():
        return "As a service, from boot on: join as root, then run `qanat-agent service install`."
    named = paths.config_argument(files.config, paths.agent_config_file())
    return f"As a service, from boot on, in place of `run`:\n  qanat-agent service install{named}"


def _as_json(
    joined: Joined, files: Files, config: AgentConfig, findings: list[CheckResult]
) -> dict[str, Any]:
    shown = [{**asdict(finding), "verdict": finding.verdict.value} for finding in findings]
    answer: dict[str, Any] = {"ok": joined.code is ExitCode.OK, "findings": shown}
    if joined.bundle is not None:
        node = joined.bundle.identity.name
        answer |= {
            "node": node,
            "identity": str(joined.bundle.identity),
            "ends": as_iso(life_of(joined.bundle.chain_pem).ends),
            "bundle": str(files.bundle),
            "config": str(files.config),
            "agents": list(joined.bundle.agents),
            "https": list(joined.bundle.https),
            "notes": list(joined.notes),
            "next": _next_steps(node, files, config),
        }
    return answer
