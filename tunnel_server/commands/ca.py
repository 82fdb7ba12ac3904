"""``qanat-server ca``: the authority, and its rotation while certificates are in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from certs.rotation import RotationStep
from tunnel_core.cli.command_line import CommandGroup, print_json
from tunnel_core.humanize import minute_of
from tunnel_server.commands.access import config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, first_items, yes_option

_MAX_NAMES = 10
_STATE_MEANINGS = {
    "steady": "one root is trusted, and signs",
    "added": "the new root is trusted too; the old root still signs",
    "switched": "the new root signs; the old root is still trusted",
}

_STEP_EFFECTS = {
    "add": "creates a new root, which is trusted from now on; the old root still signs",
    "switch": "makes the new root sign, and renews the server's own certificate",
    "retire": "stops trusting the old root; certificates that lead only to it are refused",
    "issuing": "creates another issuing certificate under the same root, which signs at once",
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
    """Show the roots and issuing certificates in use, and which nodes and users the next step cuts off.

    \b
    Example:
      qanat-server ca show
    """
    answer = perform(config, "GET", "ca", {})
    print_json(answer) if as_json else click.echo(_as_text(answer))


@command.command("rotate")
@click.argument("step", type=click.Choice([step.value for step in RotationStep]))
@click.option(
    "--force", is_flag=True, help="Cut off nodes and users that are not ready. They then need new bundles."
)
@click.option(
    "--root-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="For issuing: the file with the root's key. The server must be able to read it.",
)
@yes_option
@config_option
@json_option
def rotate(
    step: str, force: bool, root_key: Path | None, yes: bool, config: Path | None, as_json: bool
) -> None:
    """Take one step of a rotation. Wait weeks between steps; `ca show` shows when the next one is safe.

    At a terminal it shows what the step does and which nodes and users it cuts off, and asks first.

    \b
    add      create a new root, which is trusted from now on; the old root still signs
    switch   the new root signs; the server's own certificate is renewed
    retire   the old root is no longer trusted
    issuing  another issuing certificate under the same root, at once; needs the root's key

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
    lines = [f"The authority is {before['state']}. The step {step}: {_STEP_EFFECTS[step]}."]
    if step == before["next"] and before["next_cuts_off"]:
        cut = f"it cuts off {first_items(before['next_cuts_off'], _MAX_NAMES)}"
        lines.append(f"With --force {cut}." if force else f"It is refused without --force, because {cut}.")
    return "\n".join(lines)


def _as_text(answer: dict[str, Any]) -> str:
    lines = [f"The authority is {answer['state']}: {_STATE_MEANINGS[answer['state']]}."]
    for generation in answer["generations"]:
        signs = "signs, " if generation["signs"] else ""
        lines += [
            f"  {generation['folder']}: {signs}root until {minute_of(generation['root_ends'])}, issuing until"
            f" {minute_of(generation['issuing_ends'])}",
            f"    root pin {generation['root_pin']}",
        ]
    lines.append(f"  the server's certificate: until {minute_of(answer['server_certificate']['ends'])}")
    if not answer["trusted"]:
        lines.append(f"  {answer['trust_file']} lacks a trusted root: take the last step again")
    if answer["stale_tokens"]:
        named = ", ".join(answer["stale_tokens"][:10])
        lines.append(f"  open tokens that name another root of the server, create new ones: {named}")
    return "\n".join([*lines, "", *_next(answer)])


def _next(answer: dict[str, Any]) -> list[str]:
    if answer["state"] == "steady":
        return ["To replace the root, begin with: qanat-server ca rotate add"]
    cut = answer["next_cuts_off"]
    if cut:
        return [
            f"Next: {answer['next']}, after these are renewed or issued again: {first_items(cut, _MAX_NAMES)}"
        ]
    if answer["unknown_before"]:
        return [
            f"Next: {answer['next']}. Certificates older than the store are not known here and may be in use"
            f" until {minute_of(answer['unknown_before'])}; after all are issued again, use --force"
        ]
    return [f"Next, and no node or user is cut off: qanat-server ca rotate {answer['next']}"]
