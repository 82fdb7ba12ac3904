"""``qanat-agent join``: make this machine a node with a token."""

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
from certs.validity import validity_of
from tunnel_agent.certificate.node_places import Files
from tunnel_agent.checks import CheckFailed, CheckResult
from tunnel_agent.commands.check import print_result
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
_GIVE_TOKEN = "echo TOKEN | qanat-agent join SERVER, or --token-file FILE"  # noqa: S105 - no token itself


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
@click.option(
    "--allow", multiple=True, metavar="TARGET", help="HOST:PORT that users may reach. May be repeated."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the token. [default: standard input, or a prompt]",
)
@config_option
@click.option("--again", is_flag=True, help="Join again, with a new token, if this machine has joined.")
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

    The token comes from standard input, never from the command line, and names the node. The command
    checks everything before it uses the token. After an interruption, run it again with the same token. A
    machine that has joined already stays unchanged.

    \b
    Examples:
      echo TOKEN | qanat-agent join tunnel.example.com
      echo TOKEN | qanat-agent join tunnel.example.com --service web=http://127.0.0.1:1880
      qanat-agent join tunnel.example.com:7002 --token-file token --allow localhost:22
    """
    request = _request(server, name, services, allow)
    try:
        files, loaded = _files(request, config)
        proxies = load_proxy(files.config, loaded)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    results: list[CheckResult] = []
    joining = Joining(
        request,
        files,
        loaded,
        proxies,
        results.append if as_json else print_result,
        lambda: _read_token(token_file),
        lambda: datetime.now(UTC),
        host=socket.gethostname().lower(),
        again=again,
    )
    joined = _run(joining)
    if as_json:
        print_json(_as_json(joined, files, loaded, results))
    elif joined.bundle is not None:
        click.echo(_as_text(joined, joined.bundle, files, loaded))
    click.get_current_context().exit(joined.code)


def _run(joining: Joining) -> Joined:
    """Run the join. Raises ``CommandError`` after Ctrl-C."""
    joined = None
    try:
        joined = trio.run(joining.run)
    except* KeyboardInterrupt:
        pass
    if joined is None:
        message = "interrupted; run the same command again: it continues, and the token is not lost"
        raise CommandError(ExitCode.INTERRUPTED, message)
    return joined


def _request(server: str, node: str, services: tuple[str, ...], allow: tuple[str, ...]) -> JoinRequest:
    try:
        return JoinRequest(parse_server(server), node, tuple(map(parse_service, services)), allow)
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None


def _files(request: JoinRequest, config: Path | None) -> tuple[Files, AgentConfig]:
    """Return the paths of the files and the configuration after the join. Raises ``ConfigError``."""
    files = files_of(config)
    try:
        new = read(tomllib.loads(config_text(request, str(files.bundle))), files.config, AgentConfig)
    except ConfigError as error:  # the options caused the problems, because there is no file yet
        raise ConfigError(tuple(replace(problem, file=_OPTIONS) for problem in error.problems)) from None
    return files, load_config(files.config, required=True) if os.path.lexists(files.config) else new


def _read_token(file: Path | None) -> str:
    """Read the token from the file, a pipe, or a hidden prompt. Raises ``CheckFailed``."""
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
        cause = error if isinstance(error, NotPlainText) else f"cannot be read: {error.strerror}"
        raise CheckFailed(f"standard input {cause}", _GIVE_TOKEN) from None


def _next_steps(node: str, files: Files, config: AgentConfig) -> list[str]:
    named = paths.config_argument(files.config, paths.agent_config_file())
    steps = [f"qanat-agent run{named}", f"qanat-agent status{named}"]
    for service in config.service[:3]:
        if service.protocol is not Protocol.TCP:
            steps.append(
                f"qanat forward {node} {service.name} 8080  # on your machine, then open 127.0.0.1:8080"
            )
        else:
            steps.append(f"qanat forward {node} {service.name}  # on your machine")
    single = [target for entry in config.allow if (target := entry.single_target()) is not None]
    steps += [f"qanat forward {node} {target}  # on your machine" for target in single[:3]]
    return steps


def _as_text(joined: Joined, bundle: Bundle, files: Files, config: AgentConfig) -> str:
    node, validity = bundle.identity.name, validity_of(bundle.chain_pem)
    notes = "".join(f"{note}\n\n" for note in joined.notes)
    steps = "\n".join(f"  {step}" for step in _next_steps(node, files, config))
    ends = as_minute(validity.ends)
    return (
        f"\n{notes}Node {node} has joined. Its certificate is valid until {ends}; the agent renews it.\n"
        f"\nNext:\n{steps}\n\n{_service_step(files)}"
    )


def _service_step(files: Files) -> str:
    if not paths.is_system():
        return "To run as a service from boot on, join as root, then run `qanat-agent service install`."
    named = paths.config_argument(files.config, paths.agent_config_file())
    return f"To run as a service from boot on, in place of `run`:\n  qanat-agent service install{named}"


def _as_json(joined: Joined, files: Files, config: AgentConfig, results: list[CheckResult]) -> dict[str, Any]:
    findings = [{**asdict(result), "verdict": result.verdict.value} for result in results]
    answer: dict[str, Any] = {"ok": joined.code is ExitCode.OK, "findings": findings}
    if joined.bundle is not None:
        node = joined.bundle.identity.name
        answer |= {
            "node": node,
            "identity": str(joined.bundle.identity),
            "ends": as_iso(validity_of(joined.bundle.chain_pem).ends),
            "bundle": str(files.bundle),
            "config": str(files.config),
            "agents": list(joined.bundle.agents),
            "https": list(joined.bundle.https),
            "notes": list(joined.notes),
            "next": _next_steps(node, files, config),
        }
    return answer
