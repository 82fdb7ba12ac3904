"""``qanat-server ca``: the authority, and how it is replaced while its certificates are in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from certs.rotation import RotationStep
from tunnel_core.cli.command_line import CommandGroup, print_json
from tunnel_core.humanize import minute_of
from tunnel_server.commands.access import config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, few, yes_option

_MAX_NAMES = 10
_MEANS = {
    "steady": "one root is trusted, and signs",
    "added": "the new root is trusted too; the old one goes on to sign",
    "switched": "the new root signs; the old one is still trusted",
}

_DOES = {
    "add": "makes a new root, which is trusted from then on; the old one goes on to sign",
    "switch": "lets the new root sign, and makes the server's own certificate anew",
    "retire": "stops trusting the old root; what leads to it alone is let in no more",
    "issuing": "makes another issuing certificate under the same root, which signs at once",
}


@click.group("ca", cls=CommandGroup)
def command() -> None:
    """Show and replace the certificate authority.

    \b
    Examples:
      qanat-server ca show
      qanat-server ca rotate add
    """


@command.command("show")
@config_option
@json_option
def show_authority(config: Path | None, as_json: bool) -> None:
    """Show the roots and issuing certificates that count, and whom the next step would cut off.

    \b
    Example:
      qanat-server ca show
    """
    answer = perform(config, "GET", "ca", {})
    print_json(answer) if as_json else click.echo(_as_text(answer))


@command.command("rotate")
@click.argument("step", type=click.Choice([step.value for step in RotationStep]))
@click.option("--force", is_flag=True, help="Cut off those who are not ready. They need new bundles then.")
@click.option(
    "--root-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="For issuing: the root's key, where it was brought back. The server must be able to read it.",
)
@yes_option
@config_option
@json_option
def rotate(
    step: str, force: bool, root_key: Path | None, yes: bool, config: Path | None, as_json: bool
) -> None:
    """Take one STEP. Weeks lie between them; `ca show` says when the next may be taken.

    At a terminal it shows what the step does and whom it cuts off, and asks first.

    \b
    add      make a new root; it is trusted from now on, and the old one goes on to sign
    switch   the new one signs; the server's own certificate is made anew
    retire   the old root is trusted no more
    issuing  another issuing certificate under the same root, at once; takes the root's key

    \b
    Examples:
      qanat-server ca rotate add
      qanat-server ca rotate switch
      qanat-server ca rotate issuing --root-key /media/offline/root-key.pem
    """
    wanted = {"step": step, "force": force, "root_key": str(root_key.absolute()) if root_key else ""}
    what = _what_it_does(perform(config, "GET", "ca", {}), step, force=force)
    confirm(what, f"Take the step {step}?", yes=yes, as_json=as_json, needs_yes=False)
    answer = perform(config, "POST", "ca/rotate", wanted)
    print_json(answer) if as_json else click.echo(_as_text(answer))


def _what_it_does(before: dict[str, Any], step: str, *, force: bool) -> str:
    lines = [f"The authority is {before['state']}. The step {step}: {_DOES[step]}."]
    if step == before["next"] and before["next_cuts_off"]:
        cut = f"it cuts off {few(before['next_cuts_off'], _MAX_NAMES)}"
        lines.append(f"With --force {cut}." if force else f"It is refused without --force, because {cut}.")
    return "\n".join(lines)


def _as_text(answer: dict[str, Any]) -> str:
    lines = [f"The authority is {answer['state']}: {_MEANS[answer['state']]}."]
    for one in answer["generations"]:
        signs = "signs, " if one["signs"] else ""
        lines += [
            f"  {one['folder']}: {signs}root until {minute_of(one['root_ends'])}, issuing until"
            f" {minute_of(one['issuing_ends'])}",
            f"    root pin {one['root_pin']}",
        ]
    lines.append(f"  the server's certificate: until {minute_of(answer['server_certificate']['ends'])}")
    if not answer["trusted"]:
        lines.append(f"  {answer['trust_file']} lacks a root that counts: take the last step again")
    if answer["stale_tokens"]:
        named = ", ".join(answer["stale_tokens"][:10])
        lines.append(f"  open tokens that know the server by another root, make them anew: {named}")
    return "\n".join([*lines, "", *_next(answer)])


def _next(answer: dict[str, Any]) -> list[str]:
    if answer["state"] == "steady":
        return ["To replace the root, begin with: qanat-server ca rotate add"]
    cut = answer["next_cuts_off"]
    if cut:
        return [f"Next: {answer['next']}, when these were renewed or issued anew: {few(cut, _MAX_NAMES)}"]
    if answer["unknown_before"]:
        return [
            f"Next: {answer['next']}. Certificates from before the store was made are not known here and may"
            f" be in use until {minute_of(answer['unknown_before'])}; when all were issued anew, use --force"
        ]
    return [f"Next, and nobody would be cut off: qanat-server ca rotate {answer['next']}"]
