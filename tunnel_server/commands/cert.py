"""``qanat-server cert``: certificates that this server issued."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandGroup, print_json
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.humanize import as_length, counted, minute_of, parse_moment
from tunnel_server.commands.access import config_option, json_option, perform
from tunnel_server.commands.confirming import force_option, yes_option
from tunnel_server.commands.names import complete_node
from tunnel_server.commands.revoke import print_unrevoked, revoke, revoked_sentence, unrevoke, why_option

_TABLE = Table(("serial", "role", "state", "ends in", "name"), ("ends", "issued", "origin", "renewed from"))


@click.group("cert", cls=CommandGroup)
def command() -> None:
    """List certificates that this server issued, and revoke single ones.

    \b
    Examples:
      qanat-server cert list --node shop-7
      qanat-server cert revoke 6d1fb4afc0a35e82d71944b8f29e06ac5d3b7f81
      qanat-server cert unrevoke 6d1fb4afc0a35e82d71944b8f29e06ac5d3b7f81
    """


@command.command("list")
@click.option("--node", default="", metavar="NAME", shell_complete=complete_node, help="Only of this node.")
@click.option("--user", default="", metavar="NAME", help="Only of this user.")
@click.option("--ended", is_flag=True, help="Include ended certificates.")
@wide_option
@config_option
@json_option
def list_certificates(
    node: str, user: str, ended: bool, wide: bool, config: Path | None, as_json: bool
) -> None:
    """List the certificates that have not ended, newest last.

    --wide adds the times, in UTC, and the certificate from which each was renewed.

    \b
    Examples:
      qanat-server cert list
      qanat-server cert list --node shop-7 --ended
    """
    if node and user:
        raise click.UsageError("--node and --user exclude each other")
    role = "node" if node else "user" if user else ""
    wanted = {"role": role, "name": node or user, "ended": "1" if ended else "0"}
    answer = perform(config, "GET", "certificates", wanted)
    nothing = "No such certificate was issued here."
    now = datetime.now(UTC)
    rows = (_row(certificate, now) for certificate in answer["certificates"])
    show_list(answer, _TABLE, rows, nothing, as_json=as_json, wide=wide)


@command.command("revoke")
@click.argument("serial")
@why_option
@force_option
@yes_option
@config_option
@json_option
def revoke_certificate(
    serial: str, why: str, force: bool, yes: bool, config: Path | None, as_json: bool
) -> None:
    """Revoke the certificate with this SERIAL, the whole one of `cert list` or openssl, and its renewals.

    The command first shows what the revocation ends. All certificates that were renewed from it are revoked
    too. Other certificates of the node or user stay valid: `node revoke` and `user revoke` revoke all.
    `cert unrevoke` undoes the revocation until a new certificate is issued.

    \b
    Examples:
      qanat-server cert revoke 6d1fb4afc0a35e82d71944b8f29e06ac5d3b7f81
      qanat-server cert revoke 6d1fb4afc0a35e82d71944b8f29e06ac5d3b7f81 --yes
    """
    answer = revoke(config, "serial", serial, why=why, force=force, yes=yes, as_json=as_json)
    if as_json:
        print_json(answer)
        return
    known = answer["certificate"]
    whose = f"of {known['role']} {known['name']}" if known else "which this server did not issue"
    along = answer.get("along", [])
    more = f", and {counted(len(along), 'certificate')} renewed from it" if along else ""
    click.echo(revoked_sentence(answer, f"certificate {answer['revocation']['subject']}, {whose}{more}"))


@command.command("unrevoke")
@click.argument("serial")
@yes_option
@config_option
@json_option
def unrevoke_certificate(serial: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Undo the revocation of the certificate with this SERIAL and of its renewals.

    Refused if the node or user has got a new certificate since. The revocation then stays.

    \b
    Example:
      qanat-server cert unrevoke 6d1fb4afc0a35e82d71944b8f29e06ac5d3b7f81
    """
    answer = unrevoke(config, "serial", serial, yes=yes, as_json=as_json)
    print_unrevoked(answer, f"certificate {answer['taken_back']['subject']}", "", as_json=as_json)


def _row(certificate: dict[str, Any], now: datetime) -> tuple[str, ...]:
    ends = parse_moment(certificate["ends"])
    left = (ends - now).total_seconds() if ends else 0.0
    state = "revoked" if certificate["revoked"] else "good" if left > 0 else "ended"
    ends_in = as_length(left) if left > 0 else ""
    return (
        *(certificate["serial"], certificate["role"], state, ends_in, certificate["name"]),
        *(minute_of(certificate["ends"]), minute_of(certificate["issued"]), certificate["origin"]),
        certificate.get("renewed_from") or "",
    )
