"""``qanat-agent status``: show the status of the running agent."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from tunnel_agent.commands.options import config_option, json_option
from tunnel_agent.installation import load_config, place_of_config
from tunnel_agent.status.client import TIMEOUT_SECONDS, UnreadableToken, fetch_status
from tunnel_agent.status.page import cause_of
from tunnel_core.cli.command_line import CommandError, ExitCode, print_json, printable
from tunnel_core.cli.tables import Row, Table, lines_of
from tunnel_core.config.loader import ConfigError
from tunnel_core.config.types import Ops
from tunnel_core.humanize import as_duration, as_milliseconds, as_size, minute_of, moment_of
from tunnel_core.session.state import StateCategory, category_of_word

_STREAMS = Table(("stream", "user", "through", "in", "out", "target"))


@click.command("status")
@config_option
@json_option
def command(config: Path | None, as_json: bool) -> None:
    """Show the running agent's link, streams, services, last events and troubles.

    The command asks the agent, not the server, so it works while the server is away. Exits with 0 if the
    agent is attached or degraded, 4 if it is not, 1 if no agent answers.

    \b
    Examples:
      qanat-agent status
      qanat-agent status --json | jq .round_trip_seconds
      qanat-agent status --json | jq .link
    """
    status = _read_status(_ops_of(config))
    if as_json:
        print_json(status)
    else:
        click.echo("\n".join(map(printable, _lines(status))))
    click.get_current_context().exit(ExitCode.OK if _is_attached(status) else ExitCode.NOT_ATTACHED)


def _is_attached(status: Mapping[str, Any]) -> bool:
    """Whether the agent serves requests, possibly late."""
    is_reachable = category_of_word(status["link"]["state"]) is StateCategory.REACHABLE
    return status["phase"] != "stopping" and is_reachable


def _ops_of(config: Path | None) -> Ops:
    try:
        file, required = place_of_config(config)
        return load_config(file, required=required).ops
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None


def _read_status(ops: Ops) -> dict[str, Any]:
    if ops.listen is None:
        raise CommandError(ExitCode.USAGE, "[ops] listen is switched off, so the agent has no status to read")
    try:
        return fetch_status(ops)
    except UnreadableToken as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except ConnectionRefusedError as error:
        message = f"no agent answers at {ops.listen}: {error.strerror}; start one with `qanat-agent run`"
    except TimeoutError:
        message = f"the program at {ops.listen} does not answer within {TIMEOUT_SECONDS:g} s: see its log"
    except (OSError, http.client.HTTPException) as error:
        message = f"no agent answers at {ops.listen}: {error or type(error).__name__}; is it another program?"
    except ValueError as error:
        message = f"{ops.listen}: {error}; is [ops] listen the agent's address?"
    raise CommandError(ExitCode.FAILED, message)


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield f"node      {status['node']} ({status['software']})"
    yield f"link      {_link(status)}"
    if status["round_trip_seconds"] is not None:
        yield f"round trip {as_milliseconds(status['round_trip_seconds'])}"
    if status.get("certificate"):
        yield f"certificate {_certificate(status['certificate'])}"
    yield f"streams   {status['stream_count']}"
    if status["streams"]:
        yield from (f"  {line}" for line in lines_of(_STREAMS, [*map(_stream_row, status["streams"])]))
    yield "services  " + ", ".join(service["name"] for service in status["services"])
    yield "allow     " + (", ".join(status["allow"]) or "nothing beyond the services")
    for event in status["link"]["events"]:
        fields = (moment_of(event["at"]), *(event[key] for key in ("kind", "reason", "detail")))
        yield " ".join(filter(None, ("event    ", *fields)))
    for trouble in status["troubles"]:
        yield f"trouble   {moment_of(trouble['at'])} {trouble['text']}"


def _stream_row(stream: Mapping[str, Any]) -> Row:
    sizes = as_size(stream["bytes_to_target"]), as_size(stream["bytes_to_user"])
    return (stream["id"], stream["user"], stream["entrance"], *sizes, stream["target"])


def _certificate(certificate: Mapping[str, Any]) -> str:
    renews = f", renews on {minute_of(certificate['renews'])}" if certificate["renews"] else ""
    return f"until {minute_of(certificate['ends'])}{renews}"


def _link(status: Mapping[str, Any]) -> str:
    link = status["link"]
    duration, cause = as_duration(link["seconds"]), cause_of(link)
    server = f"server {status['server'] or '-'}"
    if status["phase"] == "stopping":
        return f"stopping, {server}"
    match link["state"]:
        case "grace":
            left = as_duration(link["grace_seconds_left"] or 0)
            return f"in grace since {moment_of(link['since'])}{cause}, {server}; streams wait {left} more"
        case "away":
            return f"away for {duration}{cause}; {_next_attempt(status, server)}"
        case state:
            return f"{state} for {duration}{cause}, {server}"


def _next_attempt(status: Mapping[str, Any], server: str) -> str:
    if status["phase"] == "waiting":
        return f"next attempt in {as_duration(status['next_attempt_seconds'] or 0)}"
    return f"attaching, {server}"
