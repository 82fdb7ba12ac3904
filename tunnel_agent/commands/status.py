"""``qanat-agent status``: what the running agent says of itself."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from tunnel_agent.commands.options import config_option, json_option
from tunnel_agent.load import load_config, place_of_config
from tunnel_agent.status_page import as_duration, as_milliseconds, as_size, because
from tunnel_core.command_line import CommandError, ExitCode, print_json, printable
from tunnel_core.config import ConfigError
from tunnel_core.settings import ListenAddress, Ops
from tunnel_core.text_files import NotPlainText, read_text_file, trouble_with

_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 1024 * 1024
_MAX_TOKEN_BYTES = 4096
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command("status")
@config_option
@json_option
def command(config: Path | None, as_json: bool) -> None:
    """Show what the running agent says: link, streams, services, last events and troubles.

    The agent is asked, not the server, so it works while the server is away. Exits with 0 if the
    agent is attached (be it degraded), 4 if it is not, 1 if no agent answers.

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
    """Whether the agent takes requests, be it late."""
    return status["phase"] != "stopping" and status["link"]["state"] in ("attached", "degraded")


def _ops_of(config: Path | None) -> Ops:
    try:
        file, required = place_of_config(config)
        return load_config(file, required=required).ops
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None


def _read_status(ops: Ops) -> dict[str, Any]:
    if ops.listen is None:
        raise CommandError(ExitCode.USAGE, "[ops] listen is switched off, so the agent cannot be asked")
    headers = _headers(ops)
    try:
        return _fetch(ops.listen, headers)
    except ConnectionRefusedError as error:
        message = f"no agent answers at {ops.listen}: {error.strerror}; start one with `qanat-agent run`"
    except TimeoutError:
        message = f"what listens at {ops.listen} does not answer within {_TIMEOUT_SECONDS:g} s: see its log"
    except (OSError, http.client.HTTPException) as error:
        message = f"no agent answers at {ops.listen}: {error or type(error).__name__}; is it another program?"
    except ValueError as error:
        message = f"{ops.listen}: {error}; is [ops] listen that of the agent?"
    raise CommandError(ExitCode.FAILED, message)


def _headers(ops: Ops) -> dict[str, str]:
    if ops.bearer_file is None:
        return {}
    try:
        token = read_text_file(ops.bearer_file, _MAX_TOKEN_BYTES).strip()
    except (OSError, NotPlainText) as error:
        raise CommandError(ExitCode.USAGE, trouble_with(ops.bearer_file, error)) from None
    return {"Authorization": f"Bearer {token}"}


def _fetch(listen: ListenAddress, headers: Mapping[str, str]) -> dict[str, Any]:
    host = _ANY_ADDRESS.get(listen.host, listen.host)
    connection = http.client.HTTPConnection(host, listen.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/status.json", headers=dict(headers))
        answer = connection.getresponse()
        body = answer.read(_MAX_BYTES)
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"it answered {answer.status} {answer.reason}")
    status = json.loads(body)
    if not isinstance(status, dict) or "link" not in status:
        raise ValueError("what answers there is no agent of this version")
    return status


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield f"node      {status['node']} ({status['software']})"
    yield f"link      {_link(status)}"
    if status["round_trip_seconds"] is not None:
        yield f"round trip {as_milliseconds(status['round_trip_seconds'])}"
    if status.get("certificate"):
        yield f"certificate {_certificate(status['certificate'])}"
    yield f"streams   {status['stream_count']}"
    for stream in status["streams"]:
        sizes = f"{as_size(stream['bytes_to_target'])} in, {as_size(stream['bytes_to_user'])} out"
        yield f"  {stream['id']}  {stream['target']}  {stream['user']} ({stream['entrance']})  {sizes}"
    yield "services  " + ", ".join(service["name"] for service in status["services"])
    yield "allow     " + (", ".join(status["allow"]) or "nothing beyond the services")
    for event in status["link"]["events"]:
        yield " ".join(
            filter(None, ("event    ", *(event[key] for key in ("at", "kind", "reason", "detail"))))
        )
    for trouble in status["troubles"]:
        yield f"trouble   {trouble['at']} {trouble['text']}"


def _certificate(certificate: Mapping[str, Any]) -> str:
    renews = f", renews on {certificate['renews']}" if certificate["renews"] else ""
    return f"until {certificate['ends']}{renews}"


def _link(status: Mapping[str, Any]) -> str:
    link = status["link"]
    duration, why = as_duration(link["seconds"]), because(link)
    server = f"server {status['server'] or '-'}"
    if status["phase"] == "stopping":
        return f"stopping, {server}"
    match link["state"]:
        case "grace":
            left = as_duration(link["grace_seconds_left"] or 0)
            return f"in grace since {link['since']}{why}, {server}; streams wait {left} more"
        case "away":
            return f"away for {duration}{why}; {_attempt(status, server)}"
        case state:
            return f"{state} for {duration}{why}, {server}"


def _attempt(status: Mapping[str, Any], server: str) -> str:
    if status["phase"] == "waiting":
        return f"next attempt in {as_duration(status['next_attempt_seconds'] or 0)}"
    return f"attaching, {server}"
