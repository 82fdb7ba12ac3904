"""``qanat-server node`` and ``user``: shutting one out, letting it in again, forgetting a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.humanize import counted, minute_of, moment_of
from tunnel_core.identity import Role
from tunnel_server.commands.access import checked_name, config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, ending_text, force_option, yes_option
from tunnel_server.commands.names import complete_node

Json = dict[str, Any]
_PATHS = {"node": "nodes", "user": "users", "serial": "certificates"}

why_option = click.option("--why", default="", metavar="TEXT", help="For the audit.")


@click.group("node", cls=CommandGroup)
def node() -> None:
    """What is done to nodes by name. `qanat nodes` lists them.

    \b
    Examples:
      qanat-server node revoke shop-7 --why 'stolen from the van'
      qanat-server node unrevoke shop-7
      qanat-server node forget shop-7
    """


@click.group("user", cls=CommandGroup)
def user() -> None:
    """What is done to users by name.

    \b
    Examples:
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
    """Shut out node NAME: every certificate of that name that exists now, of any issuer.

    What that ends is shown first. The node comes back only with a token made for it after this:
    `qanat-server token create --node NAME`. Until then `node unrevoke` takes it back.

    \b
    Examples:
      qanat-server node revoke shop-7 --why 'stolen from the van'
      qanat-server node revoke shop-7 --yes
    """
    answer = revoke(
        config, "node", checked_name(Role.NODE, name), why=why, force=force, yes=yes, as_json=as_json
    )
    back = (
        f"It comes back only with a new token: qanat-server token create --node {name}\n"
        f"To take this back as it was: qanat-server node unrevoke {name}"
    )
    _say(answer, f"node {name}", back, as_json=as_json)


@user.command("revoke")
@click.argument("name")
@why_option
@force_option
@yes_option
@config_option
@json_option
def revoke_user(name: str, why: str, force: bool, yes: bool, config: Path | None, as_json: bool) -> None:
    """Shut out user NAME: every certificate of that name that exists now, of any issuer.

    What that ends is shown first. A new certificate lets the user in again: `qanat-server issue user NAME`.
    Until then `user unrevoke` takes it back.

    \b
    Examples:
      qanat-server user revoke kim@example.com --why 'left the company'
      qanat-server user revoke kim@example.com --yes
    """
    answer = revoke(
        config, "user", checked_name(Role.USER, name), why=why, force=force, yes=yes, as_json=as_json
    )
    back = (
        f"Only a new certificate lets this user in again: qanat-server issue user {name}\n"
        f"To take this back as it was: qanat-server user unrevoke {name}"
    )
    _say(answer, f"user {name}", back, as_json=as_json)


def revoke(
    config: Path | None, kind: str, subject: str, *, why: str, force: bool, yes: bool, as_json: bool
) -> Json:
    """Show what the revocation ends, ask, and revoke. Raises ``CommandError``."""
    ending = perform(config, "GET", "revocations/preview", {"kind": kind, "subject": subject})
    if not ending["known"] and not force:
        hint = "To revoke it all the same, as one of another issuer or from before the store, add --force."
        message = f"{ending['unknown']}\nNothing was changed. {hint}"
        raise CommandError(ExitCode.FAILED, message)
    what = ending_text(ending)
    confirm(what, f"Revoke {subject}?", yes=yes, as_json=as_json)
    argument = "serial" if kind == "serial" else "name"
    return perform(config, "POST", f"{_PATHS[kind]}/revoke", {argument: subject, "why": why, "force": force})


def _say(answer: Json, what: str, back: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{said_of(answer, what)} {back}")


def said_of(answer: Json, what: str) -> str:
    """The sentence about a revocation: that it holds now, or held before."""
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
    """Take the revocation of node NAME back: its earlier certificates and tokens are good again.

    Refused if a certificate was issued to it since: the node is back by that one, and what was revoked
    stays revoked.

    \b
    Example:
      qanat-server node unrevoke shop-7
    """
    answer = unrevoke(config, "node", checked_name(Role.NODE, name), yes=yes, as_json=as_json)
    back = "Its agent comes back by itself within 5 minutes, or at once when it is restarted."
    say_taken_back(answer, f"node {name}", back, as_json=as_json)


@user.command("unrevoke")
@click.argument("name")
@yes_option
@config_option
@json_option
def unrevoke_user(name: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Take the revocation of user NAME back: the earlier certificates are good again.

    Refused if a certificate was issued to the user since: what was revoked stays revoked.

    \b
    Example:
      qanat-server user unrevoke kim@example.com
    """
    answer = unrevoke(config, "user", checked_name(Role.USER, name), yes=yes, as_json=as_json)
    say_taken_back(answer, f"user {name}", "", as_json=as_json)


def unrevoke(config: Path | None, kind: str, subject: str, *, yes: bool, as_json: bool) -> Json:
    """Show what is let in again, ask, and take the revocation back. Raises ``CommandError``."""
    ending = perform(config, "GET", "revocations/preview", {"kind": kind, "subject": subject})
    if ending["revoked"] is not None:  # if not, the server's refusal says so
        confirm(_taking_back_text(ending), f"Let {subject} in again?", yes=yes, as_json=as_json)
    argument = "serial" if kind == "serial" else "name"
    return perform(config, "POST", f"{_PATHS[kind]}/unrevoke", {argument: subject})


def _taking_back_text(ending: Json) -> str:
    revoked = ending["revoked"]
    why = f", because: {revoked['why']}" if revoked["why"] else ""
    at = moment_of(revoked["at"])
    return (
        f"{ending['subject']} was revoked at {at} by {revoked['by']}{why}.\n"
        "Taking that back lets in everything that was good before, also what was stolen since."
    )


def say_taken_back(answer: Json, what: str, back: str, *, as_json: bool) -> None:
    """Prints what became of a revocation that was taken back."""
    if as_json:
        print_json(answer)
        return
    if answer["still"] is None:
        good = [f"{one['serial']} until {minute_of(one['ends'])}" for one in answer["certificates"]]
        known = f" Good again: {', '.join(good[:5])}." if good else ""
        click.echo(f"{what[0].upper()}{what[1:]} is not revoked any more.{known} {back}".rstrip())
        return
    at = moment_of(answer["still"]["at"])
    click.echo(
        f"Took one revocation of {what} back; an earlier one, of {at}, still holds. Run it again for that."
    )


@node.command("forget")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Changes nothing: forgetting asks nothing.")
@config_option
@json_option
def forget_node(name: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Forget node NAME, whose agent is not attached: `qanat nodes` does not list it any more.

    Its certificates stay good. If its agent attaches again, the node is known again.

    \b
    Example:
      qanat-server node forget shop-7
    """
    answer = perform(config, "POST", "nodes/forget", {"name": checked_name(Role.NODE, name)})
    if as_json:
        print_json(answer)
        return
    good = [one for one in answer["certificates"] if not one["revoked"]]
    more = (
        f" It has {counted(len(good), 'good certificate')} and may attach again; to shut it out:"
        f" qanat-server node revoke {name}"
    )
    click.echo(f"Forgot node {name}.{more if good else ''}")
