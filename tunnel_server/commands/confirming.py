"""How a command that ends something shows what it will do, and asks before it does it."""

from __future__ import annotations

import sys
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.humanize import counted, minute_of

_MAX_SHOWN = 5

yes_option = click.option("--yes", "-y", is_flag=True, help="Do it without asking, as a script has to.")
force_option = click.option("--force", is_flag=True, help="Also if nothing of that name is known here.")


def confirm(what: str, question: str, *, yes: bool, as_json: bool, needs_yes: bool = True) -> None:
    """Show ``what`` will be done, and ask. Raises ``CommandError`` without consent.

    Without a terminal, and with ``--json``, there is no question; ``--yes`` is needed then, if ``needs_yes``.
    """
    can_ask = sys.stdin.isatty() and not as_json
    if yes or (not can_ask and not needs_yes):
        if not as_json:
            click.echo(what)
        return
    if not can_ask:
        why = "there is no terminal to ask at" if not as_json else "--json asks nothing"
        raise CommandError(ExitCode.USAGE, f"{what}\nNothing was changed: {why}. Add --yes to do it.")
    click.echo(what)
    if not click.confirm(question, err=True):
        raise CommandError(ExitCode.FAILED, "nothing was changed")


def ending_text(ending: dict[str, Any]) -> str:
    """What a revocation ends, for people."""
    what = "certificate" if ending["kind"] == "serial" else ending["kind"]
    whose = f", of {ending['role']} {ending['name']}" if what == "certificate" and ending["name"] else ""
    certificates = [_certificates(ending), _renewed(ending)]
    rows = list(filter(None, [*certificates, _sessions(ending), _streams(ending), _tokens(ending)]))
    if not rows:
        rows = ["nothing that is in use now, as far as this server knows"]
    lines = [f"Revoking {what} {ending['subject']}{whose} ends:", *(f"  {row}" for row in rows)]
    if perhaps := ending.get("perhaps_along"):
        lines.append(
            "These certificates stay valid, because the store does not know what they were renewed from:"
            f" {few(perhaps)}. To end them as well: qanat-server {ending['role']} revoke {ending['name']}"
        )
    return "\n".join(lines)


def _certificates(ending: dict[str, Any]) -> str:
    along = set(ending.get("along", ()))
    good = [one for one in ending["certificates"][::-1] if one["serial"] not in along]
    return _row("certificate", [f"{one['serial']} until {minute_of(one['ends'])}" for one in good])


def _renewed(ending: dict[str, Any]) -> str:
    along = set(ending.get("along", ()))
    good = [one for one in ending["certificates"][::-1] if one["serial"] in along]
    row = _row("certificate", [f"{one['serial']} until {minute_of(one['ends'])}" for one in good])
    return f"{row}, renewed from it" if row else ""


def _sessions(ending: dict[str, Any]) -> str:
    return _row("session", [f"{one['node']} from {one['address']}" for one in ending["sessions"]])


def _streams(ending: dict[str, Any]) -> str:
    if not ending["streams"]:
        return ""
    users = ending["users"]
    return counted(ending["streams"], "stream") + (f", of {few(users)}" if users else "")


def _tokens(ending: dict[str, Any]) -> str:
    return _row("open token", ending["tokens"])


def _row(name: str, items: list[str]) -> str:
    return f"{counted(len(items), name)}: {few(items)}" if items else ""


def few(items: list[str], most: int = _MAX_SHOWN) -> str:
    """The first items in one line, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
