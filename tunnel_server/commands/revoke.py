"""``qanat-server node`` and ``user``: revoke, unrevoke, and forget a node.

``users.py`` and ``labels.py`` add further commands to the two groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.humanize import counted, minute_of, moment_of
from tunnel_core.identity import Role
from tunnel_server.commands.access import checked_name, config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, ending_text, force_option, yes_option
from tunnel_server.commands.names import complete_node, complete_user

Json = dict[str, Any]
_PATHS = {"node": "nodes", "user": "users", "serial": "certificates"}

why_option = click.option("--why", default="", metavar="TEXT", help="Reason for the audit.")


@click.group("node", cls=CommandGroup)
def node() -> None:
    """Revoke, unrevoke, label and forget nodes by name. `qanat nodes` lists them.

    \b
    Examples:
      qanat-server node revoke shop-7 --why 'stolen from the van'
      qanat-server node unrevoke shop-7
      qanat-server node label shop-7 site=hamburg
      qanat-server node forget shop-7
    """


@click.group("user", cls=CommandGroup)
def user() -> None:
    """Add, list, disable and revoke users by name. `qanat-server grant` says what they may open.

    \b
    Examples:
      qanat-server user add kim@example.com
      qanat-server user list
      qanat-server user revoke kim@example.com
      qanat-server user unrevoke kim@example.com
    """


@node.command("revoke")
@click.argument("name", shell_complete=complete_node)
@why_option
@force_option
@yes_option
@config_option
@json_option
def revoke_node(name: str, why: str, force: bool, yes: bool, config: Path | None, as_json: bool) -> None:
    """Revoke node NAME: every existing certificate of that name, of any issuer.

    The command first shows what the revocation ends. The node can join again only with a token created
    afterwards: `qanat-server token create --node NAME`. Until then `node unrevoke` undoes the revocation.

    \b
    Examples:
      qanat-server node revoke shop-7 --why 'stolen from the van'
      qanat-server node revoke shop-7 --yes
    """
    answer = revoke(
        config, "node", checked_name(Role.NODE, name), why=why, force=force, yes=yes, as_json=as_json
    )
    next_steps = (
        f"It can join again only with a new token: qanat-server token create --node {name}\n"
        f"To undo this: qanat-server node unrevoke {name}"
    )
    _print(answer, f"node {name}", next_steps, as_json=as_json)


@user.command("revoke")
@click.argument("name", shell_complete=complete_user)
@why_option
@force_option
@yes_option
@config_option
@json_option
def revoke_user(name: str, why: str, force: bool, yes: bool, config: Path | None, as_json: bool) -> None:
    """Revoke user NAME: every existing certificate of that name, of any issuer.

    The command first shows what the revocation ends. A new certificate gives the user access again:
    `qanat-server issue user NAME`. Until then `user unrevoke` undoes the revocation.

    \b
    Examples:
      qanat-server user revoke kim@example.com --why 'left the company'
      qanat-server user revoke kim@example.com --yes
    """
    answer = revoke(
        config, "user", checked_name(Role.USER, name), why=why, force=force, yes=yes, as_json=as_json
    )
    next_steps = (
        f"Only a new certificate gives this user access again: qanat-server issue user {name}\n"
        f"To undo this: qanat-server user unrevoke {name}"
    )
    _print(answer, f"user {name}", next_steps, as_json=as_json)


def revoke(
    config: Path | None, kind: str, subject: str, *, why: str, force: bool, yes: bool, as_json: bool
) -> Json:
    """Show what the revocation ends, ask, and revoke. Return the answer. Raises ``CommandError``."""
    ending = perform(config, "GET", "revocations/preview", {"kind": kind, "subject": subject})
    if not ending["known"] and not force:
        hint = "For a certificate of another issuer, or from before the store, add --force."
        message = f"{ending['unknown']}\nNothing was changed. {hint}"
        raise CommandError(ExitCode.FAILED, message)
    what = ending_text(ending)
    confirm(what, f"Revoke {subject}?", yes=yes, as_json=as_json)
    argument = "serial" if kind == "serial" else "name"
    return perform(config, "POST", f"{_PATHS[kind]}/revoke", {argument: subject, "why": why, "force": force})


def _print(answer: Json, what: str, next_steps: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{revoked_sentence(answer, what)} {next_steps}")


def revoked_sentence(answer: Json, what: str) -> str:
    """Return the sentence about a revocation that is new, or that existed before."""
    revocation = answer["revocation"]
    if not answer["again"]:
        return f"Revoked {what}."
    at = moment_of(revocation["at"])
    return f"{what[0].upper()}{what[1:]} is revoked already, since {at} by {revocation['by']}."


@node.command("unrevoke")
@click.argument("name")
@yes_option
@config_option
@json_option
def unrevoke_node(name: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Undo the revocation of node NAME: its earlier certificates and tokens are valid again.

    Refused if the node has got a new certificate since. The node uses the new one, and the revocation of the
    earlier ones stays.

    \b
    Example:
      qanat-server node unrevoke shop-7
    """
    answer = unrevoke(config, "node", checked_name(Role.NODE, name), yes=yes, as_json=as_json)
    next_steps = "Its agent attaches by itself within 5 minutes, or at once after a restart."
    print_unrevoked(answer, f"node {name}", next_steps, as_json=as_json)


@user.command("unrevoke")
@click.argument("name", shell_complete=complete_user)
@yes_option
@config_option
@json_option
def unrevoke_user(name: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Undo the revocation of user NAME: the earlier certificates are valid again.

    Refused if the user has got a new certificate since. The revocation of the earlier ones then stays.

    \b
    Example:
      qanat-server user unrevoke kim@example.com
    """
    answer = unrevoke(config, "user", checked_name(Role.USER, name), yes=yes, as_json=as_json)
    print_unrevoked(answer, f"user {name}", "", as_json=as_json)


def unrevoke(config: Path | None, kind: str, subject: str, *, yes: bool, as_json: bool) -> Json:
    """Show the revocation, ask, and undo it. Return the answer. Raises ``CommandError``."""
    ending = perform(config, "GET", "revocations/preview", {"kind": kind, "subject": subject})
    if ending["revoked"] is not None:  # Otherwise the server refuses the request below.
        confirm(_unrevoke_text(ending), f"Unrevoke {subject}?", yes=yes, as_json=as_json)
    argument = "serial" if kind == "serial" else "name"
    return perform(config, "POST", f"{_PATHS[kind]}/unrevoke", {argument: subject})


def _unrevoke_text(ending: Json) -> str:
    revoked = ending["revoked"]
    why = f", because: {revoked['why']}" if revoked["why"] else ""
    at = moment_of(revoked["at"])
    return (
        f"{ending['subject']} was revoked at {at} by {revoked['by']}{why}.\n"
        "Unrevoking makes all its earlier certificates valid again, even stolen ones."
    )


def print_unrevoked(answer: Json, what: str, next_steps: str, *, as_json: bool) -> None:
    """Print the result of ``unrevoke``."""
    if as_json:
        print_json(answer)
        return
    if answer["still"] is None:
        valid = [f"{it['serial']} until {minute_of(it['ends'])}" for it in answer["certificates"]]
        listed = f" Valid again: {', '.join(valid[:5])}." if valid else ""
        click.echo(f"{what[0].upper()}{what[1:]} is no longer revoked.{listed} {next_steps}".rstrip())
        return
    at = moment_of(answer["still"]["at"])
    click.echo(
        f"Undid one revocation of {what}; an earlier one, of {at}, remains. Run this again to undo it too."
    )


@node.command("forget")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Has no effect, because this command does not ask.")
@config_option
@json_option
def forget_node(name: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Forget node NAME, whose agent is not attached: `qanat nodes` no longer lists it.

    Its certificates stay valid. If its agent attaches again, the node is listed again.

    \b
    Example:
      qanat-server node forget shop-7
    """
    answer = perform(config, "POST", "nodes/forget", {"name": checked_name(Role.NODE, name)})
    if as_json:
        print_json(answer)
        return
    valid = [certificate for certificate in answer["certificates"] if not certificate["revoked"]]
    more = (
        f" It has {counted(len(valid), 'valid certificate')} and may attach again; to prevent this:"
        f" qanat-server node revoke {name}"
    )
    click.echo(f"Forgot node {name}.{more if valid else ''}")
