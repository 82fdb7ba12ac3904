"""``qanat-server issue``: certificates for nodes and users, signed by this command."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from certs.authority_folder import load_authority
from certs.bundle import Bundle, format_bundle
from certs.ca import LEAF_DAYS, Authority, AuthorityError, Leaf
from certs.files import write_private, write_public
from certs.x509 import describe
from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.config.paths import rights_hint
from tunnel_core.humanize import as_iso, as_minute
from tunnel_core.identity import Role
from tunnel_server.auth.users import LOOPBACK_USER
from tunnel_server.commands.access import checked_name, config_option, json_option, load_config, perform
from tunnel_server.commands.grant_hint import grant_hint
from tunnel_server.commands.installation import make_bundle
from tunnel_server.config import ServerConfig
from tunnel_server.pki.public_addresses import NoNames, addresses, server_names
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER

_STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True, slots=True)
class _Order:
    role: Role
    name: str
    days: float
    renewable: bool


@dataclass(frozen=True, slots=True)
class _Issued:
    role: Role
    name: str
    leaf: Leaf
    bundle: Bundle
    grants: list[str] | None
    """Ids of the user's grants; None for a node, and after a record by a server of before grants."""


@click.group("issue", cls=CommandGroup)
def command() -> None:
    """Issue a certificate to a node or a user, as one file to copy there.

    \b
    Examples:
      qanat-server issue node edge1
      qanat-server issue user kim@example.com --days 30
      qanat-server issue user kube-apiserver --pem /etc/kubernetes/qanat
    """


_name = click.argument("name")
_out = click.option(
    "--out", type=click.Path(path_type=Path), help="The bundle to write; - prints it. [default: NAME.pem]"
)
_days = click.option(
    "--days",
    type=click.FloatRange(0, 36500, min_open=True),
    default=LEAF_DAYS,
    show_default=True,
    help="Days for which it is valid, and each renewal at most.",
)
_renewable = click.option(
    "--renewable",
    is_flag=True,
    help="Let renewals be valid as long as [identity] of the configuration says, even if that is longer.",
)


@command.command("node")
@_name
@_out
@_days
@_renewable
@config_option
@json_option
def issue_node(
    name: str, out: Path | None, days: float, renewable: bool, config: Path | None, as_json: bool
) -> None:
    """Issue the bundle with which the agent on node NAME attaches.

    \b
    Examples:
      qanat-server issue node edge1
      qanat-server issue node edge1 --out - | ssh edge1 'umask 077; cat > /etc/qanat/node.pem'
    """
    file = out or Path(f"{name}.pem")
    issued = _issue(_Order(Role.NODE, name, days, renewable), config, [file])
    _write_bundle(issued, file)
    copy = f"ssh {name} mkdir -p /etc/qanat && scp {_quoted(file)} {name}:/etc/qanat/node.pem"
    steps = [copy, "qanat-agent run  # on the node"]
    _report(issued, [file], [] if file == _STANDARD_OUTPUT else steps, as_json)


@command.command("user")
@_name
@_out
@click.option(
    "--pem",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write cert.pem, key.pem and ca.pem into this folder instead, for other programs.",
)
@_days
@_renewable
@config_option
@json_option
def issue_user(
    name: str,
    out: Path | None,
    pem: Path | None,
    days: float,
    renewable: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Issue the bundle of user NAME, for a person's qanat command or for a program.

    A new user may open nothing until a grant allows it; the command prints the `grant add` to paste.

    \b
    Examples:
      qanat-server issue user kim@example.com --days 30
      qanat-server issue user ci --days 1 --renewable
      qanat-server issue user kube-apiserver --pem /etc/kubernetes/qanat
    """
    files = _pem_files(pem) if pem else []
    bundles = [out or Path(f"{name}.pem")] if out or not pem else []
    issued = _issue(_Order(Role.USER, name, days, renewable), config, [*files, *bundles])
    if files:
        _write_pem(issued, *files)
    for bundle in bundles:
        _write_bundle(issued, bundle)
    steps = [*grant_hint(name, issued.grants, config), *_user_steps(issued, pem, bundles)]
    _report(issued, [*files, *bundles], steps, as_json)


def _issue(order: _Order, config_file: Path | None, files: list[Path]) -> _Issued:
    """Issue and record a certificate. Raises ``CommandError``, also if ``files`` cannot be written."""
    role, name = order.role, checked_name(order.role, order.name)
    if role is Role.USER and name == LOOPBACK_USER:
        sentence = "is the name of all programs beside the web entrance on loopback; choose another name"
        raise CommandError(ExitCode.USAGE, f"{name} {sentence}")
    config = load_config(config_file)
    _refuse_places(files)
    try:
        authority = load_authority(config.data_dir / AUTHORITY_FOLDER)
        leaf = authority.issue(role, name, days=order.days)
    except AuthorityError as error:
        hint = rights_hint(error.__cause__) if isinstance(error.__cause__, OSError) else ""
        raise CommandError(ExitCode.USAGE, f"{error}; {hint}" if hint else str(error)) from None
    _refuse_other_domain(authority, config)
    try:
        names = server_names(config)
    except NoNames as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    renewable = {"renewable": True} if order.renewable else {}  # An older server refuses this argument.
    chain = {"chain": leaf.chain_pem.decode(), **renewable}
    recorded = perform(config_file, "POST", "certificates/record", chain)
    agents, https = addresses(names, config.agents.listen), addresses(names, config.https.listen)
    bundle = make_bundle(authority, leaf, role, name, agents, https)
    return _Issued(role, name, leaf, bundle, recorded.get("grants"))


def _refuse_other_domain(authority: Authority, config: ServerConfig) -> None:
    if authority.trust_domain != config.trust_domain:
        message = (
            f"the authority is of trust domain {authority.trust_domain}, the configuration says"
            f" {config.trust_domain}: the server would refuse its certificates"
        )
        raise CommandError(ExitCode.USAGE, message)


def _refuse_places(files: list[Path]) -> None:
    """Raise ``CommandError`` if the output cannot go to one of ``files``."""
    if _STANDARD_OUTPUT in files and sys.stdout.isatty():
        raise CommandError(ExitCode.USAGE, "--out - would show the private key on the screen; use a pipe")
    if existing := [str(file) for file in files if file != _STANDARD_OUTPUT and os.path.lexists(file)]:
        message = f"nothing was changed, because these exist: {', '.join(existing)}"
        raise CommandError(ExitCode.USAGE, f"{message}; move them away, or choose another place")


def _write_bundle(issued: _Issued, file: Path) -> None:
    data = format_bundle(issued.bundle)
    if file == _STANDARD_OUTPUT:
        click.echo(data, nl=False)
    else:
        _write({file: data}, private={file})


def _pem_files(folder: Path) -> list[Path]:
    return [folder / "cert.pem", folder / "key.pem", folder / "ca.pem"]


def _write_pem(issued: _Issued, certificate: Path, key: Path, ca: Path) -> None:
    contents = {
        certificate: issued.leaf.chain_pem,
        key: issued.leaf.credential.key_pem,
        ca: issued.leaf.roots_pem,
    }
    _write(contents, private={key})


def _write(contents: dict[Path, bytes], private: set[Path]) -> None:
    try:
        for file, data in contents.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write = write_private if file in private else write_public
            write(file, data, replace=False)
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{error.filename}: {error.strerror}") from None


def _user_steps(issued: _Issued, pem: Path | None, bundles: list[Path]) -> list[str]:
    if bundles == [_STANDARD_OUTPUT]:
        return []
    if bundles:
        return [f"qanat --bundle {_quoted(bundles[0])} nodes"]
    folder, https = pem or Path(), issued.bundle.https
    certificates = (
        f"--proxy-cert {_quoted(folder / 'cert.pem')} --proxy-key {_quoted(folder / 'key.pem')}"
        f" --proxy-cacert {_quoted(folder / 'ca.pem')}"
    )
    return [f"curl -p -x https://{address} {certificates} http://NODE:PORT/" for address in https[:1]]


def _report(issued: _Issued, files: list[Path], steps: list[str], as_json: bool) -> None:
    to_stderr = _STANDARD_OUTPUT in files
    ends = describe(issued.leaf.credential.certificate_pem).ends
    if as_json and not to_stderr:
        print_json(
            {
                "identity": str(issued.bundle.identity),
                "ends": as_iso(ends),
                "files": [str(file) for file in files],
                "agents": list(issued.bundle.agents),
                "https": list(issued.bundle.https),
                "next": steps,
            }
        )
        return
    made = ", ".join(str(file) for file in files if file != _STANDARD_OUTPUT)
    lines = [
        f"Issued {issued.role.value} {issued.name} until {as_minute(ends)}" + (f": {made}" if made else "")
    ]
    lines += [f"{issued.name} may open nothing yet, because no grant names this user."] * (
        issued.grants == []
    )
    lines += ["", "Next:", *(f"  {step}" for step in steps)] if steps else []
    click.echo("\n".join(lines), err=to_stderr)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
