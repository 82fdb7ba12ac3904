"""``qanat-server audit``: joins, renewals, revocations and refusals, and records of streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.humanize import as_length, as_size, moment_of
from tunnel_server.commands.access import config_option, json_option, perform
from tunnel_server.commands.durations import TIME_HELP, moment
from tunnel_server.commands.names import complete_node
from tunnel_server.store.audit import MAX_LISTED, AuditKind

_KINDS = [kind.value for kind in AuditKind]
_TABLE = Table(("time", "what", "whom", "by", "detail"))
_STREAMS = Table(
    ("ended", "user", "node", "target", "entrance", "lasted", "out", "in", "reason"),
    ("source", "address", "grant", "stream"),
)
_STREAM_ENTRANCES = ("connect", "web", "tcp")


@click.command("audit")
@click.option(
    "--node", default="", metavar="NAME", shell_complete=complete_node, help="Lines about this node."
)
@click.option("--user", default="", metavar="NAME", help="Lines about this user.")
@click.option(
    "--kind",
    type=click.Choice(_KINDS),
    metavar="KIND",
    help=f"Lines of this kind: {', '.join(_KINDS)}.",
)
@click.option("--streams", is_flag=True, help="Records of streams that ended, in place of the lines.")
@click.option("--entrance", type=click.Choice(_STREAM_ENTRANCES), help="Streams of this entrance.")
@click.option("--since", type=moment, help=f"Lines from this time on: {TIME_HELP}.")
@click.option("--until", type=moment, help="Lines before this time, in the form of --since.")
@click.option(
    "--most",
    type=click.IntRange(1, MAX_LISTED),
    default=100,
    show_default=True,
    help="Number of lines. The newest are chosen.",
)
@wide_option
@config_option
@json_option
def command(
    node: str,
    user: str,
    kind: str | None,
    streams: bool,
    entrance: str | None,
    since: int | None,
    until: int | None,
    most: int,
    wide: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Show the newest matching lines of the audit, newest last. Times are in UTC.

    With --streams it shows who opened what, through which entrance, under which grant, and how it ended.
    The section [audit] of the configuration says which part of the streams is recorded.

    \b
    Examples:
      qanat-server audit --node shop-7
      qanat-server audit --kind refused --since 24h
      qanat-server audit --streams --user kim --since 24h
      qanat-server audit --since 2027-01-31T18:30Z
      qanat-server audit --json --since 2027-01-01 --until 2027-02-01
    """
    if kind and streams:
        raise CommandError(ExitCode.USAGE, "records of streams have no kind: leave out --kind or --streams")
    if entrance and not streams:
        raise CommandError(ExitCode.USAGE, "only streams have an entrance: add --streams")
    wanted: dict[str, Any] = {"node": node, "user": user, "most": most}
    wanted |= {"since_ms": since} if since is not None else {}
    wanted |= {"until_ms": until} if until is not None else {}
    if streams:
        answer = perform(config, "GET", "audit/streams", {**wanted, "entrance": entrance or ""})
        rows, nothing = map(stream_row, answer["streams"]), "No record of a stream matches."
        show_list(answer, _STREAMS, rows, nothing, as_json=as_json, wide=wide)
        return
    answer = perform(config, "GET", "audit", {**wanted, "kind": kind or ""})
    nothing = "No line of the audit matches."
    show_list(answer, _TABLE, map(row_of, answer["audit"]), nothing, as_json=as_json, wide=wide)


def stream_row(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one record of a stream."""
    return (
        *(moment_of(record["ended"]), record["user"], record["node"], record["target"], record["entrance"]),
        as_length(record["seconds"]),
        *(as_size(record["bytes_to_target"]), as_size(record["bytes_to_user"]), record["reason"]),
        *(record["source"], record["address"], record["grant"] or "", record["stream"]),
    )


def row_of(line: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one line. Token and serial are left out if the detail names them."""
    subject = line.get("node") or line.get("user", "")
    by = line.get("done_by") or line.get("source", "")
    detail = line.get("detail", "")
    named = [f"{key} {line[key]}" for key in ("token", "serial") if key in line]
    facts = [line.get("reason", ""), *(text for text in named if text not in detail), detail]
    return moment_of(line["at"]), line["kind"], subject, by, ", ".join(filter(None, facts))
