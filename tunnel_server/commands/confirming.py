"""Confirmation of commands that end something: show the effects, and ask."""

from __future__ import annotations

import sys
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.humanize import counted, minute_of

_MAX_SHOWN = 5

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask. Scripts need this.")
force_option = click.option(
    "--force", is_flag=True, help="Revoke even if the server does not know the name or serial."
)


def confirm(what: str, question: str, *, yes: bool, as_json: bool, needs_yes: bool = True) -> None:
    """Show ``what`` will be done, and ask. Raises ``CommandError`` without consent.

    Without a terminal and with ``--json`` there is no question. ``needs_yes`` then requires ``--yes``.
    """
    can_ask = sys.stdin.isatty() and not as_json
    if yes or (not can_ask and not needs_yes):
        if not as_json:
            click.echo(what)
        return
    if not can_ask:
        why = "there is no terminal for a question" if not as_json else "--json asks no question"
        raise CommandError(ExitCode.USAGE, f"{what}\nNothing was changed: {why}. Add --yes to do it.")
    click.echo(what)
    if not click.confirm(question, err=True):
        raise CommandError(ExitCode.FAILED, "nothing was changed")


def ending_text(ending: dict[str, Any]) -> str:
    """Return the sentences about what a revocation ends."""
    what = "certificate" if ending["kind"] == "serial" else ending["kind"]
    whose = f", of {ending['role']} {ending['name']}" if what == "certificate" and ending["name"] else ""
    certificates = [_certificates(ending), _renewed(ending)]
    rows = list(filter(None, [*certificates, _sessions(ending), _streams(ending), _tokens(ending)]))
    if not rows:
        rows = ["nothing that this server knows to be in use"]
    lines = [f"Revoking {what} {ending['subject']}{whose} ends:", *(f"  {row}" for row in rows)]
    if perhaps := ending.get("perhaps_along"):
        lines.append(
            "These certificates stay valid, because the store does not know their previous certificates:"
            f" {first_items(perhaps)}. To end them too: qanat-server {ending['role']} revoke {ending['name']}"
        )
    return "\n".join(lines)


def _certificates(ending: dict[str, Any]) -> str:
    renewals = set(ending.get("along", ()))
    return _certificate_row([it for it in ending["certificates"][::-1] if it["serial"] not in renewals])


def _renewed(ending: dict[str, Any]) -> str:
    renewals = set(ending.get("along", ()))
    row = _certificate_row([it for it in ending["certificates"][::-1] if it["serial"] in renewals])
    return f"{row}, renewed from it" if row else ""


def _certificate_row(certificates: list[dict[str, Any]]) -> str:
    return _row("certificate", [f"{it['serial']} until {minute_of(it['ends'])}" for it in certificates])


def _sessions(ending: dict[str, Any]) -> str:
    return _row("session", [f"{session['node']} from {session['address']}" for session in ending["sessions"]])


def _streams(ending: dict[str, Any]) -> str:
    if not ending["streams"]:
        return ""
    users = ending["users"]
    return counted(ending["streams"], "stream") + (f", of {first_items(users)}" if users else "")


def _tokens(ending: dict[str, Any]) -> str:
    return _row("open token", ending["tokens"])


def _row(name: str, items: list[str]) -> str:
    return f"{counted(len(items), name)}: {first_items(items)}" if items else ""


def first_items(items: list[str], most: int = _MAX_SHOWN) -> str:
    """Return the first items in one line, and the number of the others."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
