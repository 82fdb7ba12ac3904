"""``qanat-server init``: create authority, server certificate, operator bundle and configuration."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import click

from certs.ca import LOOPBACK_NAMES, Leaf, canonical_name, default_trust_domain
from certs.x509 import describe
from tunnel_core.cli.command_line import CommandError, ExitCode, print_json
from tunnel_core.config import paths
from tunnel_core.humanize import as_iso, as_minute
from tunnel_core.identity import Role, SpiffeId
from tunnel_server.commands.config_text import Ports
from tunnel_server.commands.installation import OPERATOR, Installation, InstallationError, install
from tunnel_server.store.database import StoreError

_SERVICE = "qanat-server service install"
_PORT = click.IntRange(1, 65535)


class _NameOption(click.Option):
    """``--name``, whose error when missing has an example."""

    def process_value(self, ctx: click.Context, value: object) -> object:
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            example = (
                "Name the address of this server for agents and users:"
                " qanat-server init --name tunnel.example.com"
            )
            raise click.MissingParameter(example, ctx, param=self) from None


@click.command("init")
@click.option(
    "--name",
    "names",
    cls=_NameOption,
    multiple=True,
    required=True,
    metavar="DNS-OR-IP",
    help="Address of this server for agents and users. May be repeated; the first is the main one.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Keys and state. [default: /var/lib/qanat; not as root: ~/.local/share/qanat]",
)
@click.option("--config", type=click.Path(path_type=Path), help="The configuration file to write.")
@click.option("--bundle", type=click.Path(path_type=Path), help="The operator's bundle to write.")
@click.option("--trust-domain", metavar="DOMAIN", help="[default: the first name if it is a DNS name]")
@click.option("--agents-port", type=_PORT, default=7001, show_default=True, help="Port for agents.")
@click.option(
    "--https-port",
    type=_PORT,
    default=7002,
    show_default=True,
    help="Port for users, and for nodes that join or renew.",
)
@click.option(
    "--web-port", type=_PORT, default=7003, show_default=True, help="Port for browsers, loopback only."
)
@click.option(
    "--ops-port", type=_PORT, default=7004, show_default=True, help="Port for metrics, loopback only."
)
@click.option("--no-localhost", is_flag=True, help="Leave localhost, 127.0.0.1, ::1 out of the certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    names: tuple[str, ...],
    data_dir: Path | None,
    config: Path | None,
    bundle: Path | None,
    trust_domain: str | None,
    agents_port: int,
    https_port: int,
    web_port: int,
    ops_port: int,
    no_localhost: bool,
    as_json: bool,
) -> None:
    """Create everything a server needs: root and issuing authority, server certificate, the
    operator's bundle and a commented configuration. Existing files are not overwritten.

    \b
    Examples:
      qanat-server init --name tunnel.example.com
      qanat-server init --name tunnel.example.com --name 203.0.113.5
      qanat-server init --name localhost --data-dir ./try
    """
    known = server_names(names)
    folder = (data_dir or paths.data_folder()).absolute()
    plan = Installation(
        data_dir=folder,
        config_file=_config_file(config, data_dir),
        operator_bundle=(bundle or _operator_bundle(data_dir, folder)).absolute(),
        trust_domain=_trust_domain(trust_domain or default_trust_domain(known[0])),
        names=known,
        all_names=known if no_localhost else with_loopback(known),
        ports=Ports(agents_port, https_port, web_port, ops_port),
    )
    server = install_for_command(plan)
    print_json(_as_json(plan, server)) if as_json else click.echo(_as_text(plan, server))


def server_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the names in normal form, without duplicates. Raises ``CommandError``."""
    return tuple(dict.fromkeys(map(_server_name, texts)))


def with_loopback(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the default names of a certificate: ``names`` and those of loopback."""
    return tuple(dict.fromkeys((*names, *LOOPBACK_NAMES)))


def _server_name(text: str) -> str:
    try:
        return canonical_name(text)
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, f"--name takes a DNS name or an address: {error}") from None


def _trust_domain(text: str) -> str:
    try:
        return SpiffeId(text, Role.USER, OPERATOR).trust_domain
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, f"--trust-domain: {error}") from None


def _config_file(config: Path | None, data_dir: Path | None) -> Path:
    """Return the configuration's place: in the data folder if only that was named."""
    if config is not None:
        return config.absolute()
    return (data_dir / "server.toml").absolute() if data_dir else paths.server_config_file()


def _operator_bundle(data_dir: Path | None, folder: Path) -> Path:
    """Return the bundle's place: where the ``qanat`` command finds it, or in the data folder.

    The data folder is used if the usual place is taken, or if a data folder was named.
    """
    usual = paths.user_bundle_file()
    return folder / "operator.pem" if data_dir or os.path.lexists(usual) else usual


def install_for_command(plan: Installation) -> Leaf:
    """Install, and return the server's certificate. Raises ``CommandError``."""
    try:
        return install(plan)
    except InstallationError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except StoreError as error:
        raise CommandError.refused(error) from None
    except OSError as error:
        message = f"{error.filename or plan.data_dir}: {error.strerror}; correct this and run init again"
        raise CommandError(ExitCode.FAILED, message) from None


def _next_steps(plan: Installation) -> list[str]:
    config = (
        "" if plan.config_file == paths.server_config_file() else f" --config {_quoted(plan.config_file)}"
    )
    bundle = "" if _is_found(plan) else f" --bundle {_quoted(plan.operator_bundle)}"
    return [
        f"qanat-server run{config}",
        f"qanat-server token create --node edge1{config}",
        f"qanat{bundle} nodes",
    ]


def _service_step(plan: Installation) -> list[str]:
    """Return the hint about a service. It is empty unless root installs, because only root can set one up."""
    if not paths.is_system():
        return []
    named = paths.config_argument(plan.config_file, paths.server_config_file())
    return ["", "As a service that starts at boot, instead of `run`:", f"  {_SERVICE}{named}"]


def _is_found(plan: Installation) -> bool:
    return plan.operator_bundle == paths.user_bundle_file()


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _as_text(plan: Installation, server: Leaf) -> str:
    ends = describe(server.credential.certificate_pem).ends
    return "\n".join(
        [
            f"Created a server of trust domain {plan.trust_domain}:",
            f"  {plan.config_file}  the configuration",
            f"  {plan.certificate_file}  until {as_minute(ends)}, for {', '.join(plan.all_names)}",
            f"  {plan.operator_bundle}  the bundle of user {OPERATOR}, for the qanat command",
            f"  {plan.root_key}  the root's key: keep it offline, issuing works without it",
            "",
            "Next:",
            *(f"  {line}" for line in _next_steps(plan)),
            *_service_step(plan),
        ]
    )


def _as_json(plan: Installation, server: Leaf) -> dict[str, object]:
    return {
        "trust_domain": plan.trust_domain,
        "config": str(plan.config_file),
        "data_dir": str(plan.data_dir),
        "certificate": str(plan.certificate_file),
        "certificate_ends": as_iso(describe(server.credential.certificate_pem).ends),
        "certificate_names": list(plan.all_names),
        "operator_bundle": str(plan.operator_bundle),
        "root_key": str(plan.root_key),
        "agents": list(plan.agents),
        "https": list(plan.https),
        "next": _next_steps(plan),
    }
