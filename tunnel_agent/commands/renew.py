"""``qanat-agent renew``: renew the node's certificate now."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from certs.validity import validity_of
from tunnel_agent.certificate.renew import renew
from tunnel_agent.checks import CheckFailed
from tunnel_agent.commands.options import bundle_option, config_option, installation_of, json_option
from tunnel_core.cli.command_line import CommandError, ExitCode, exit_code_of, print_json
from tunnel_core.config.loader import ConfigError
from tunnel_core.humanize import as_iso, as_minute
from tunnel_core.reasons import Reason, Refused


@click.command("renew")
@config_option
@bundle_option
@json_option
def command(config: Path | None, bundle: Path | None, as_json: bool) -> None:
    """Renew the node's certificate now.

    A running agent renews by itself, and loads the certificate of this command. The new certificate is for
    a new key, which never leaves this machine.

    \b
    Examples:
      qanat-agent renew
      qanat-agent renew --bundle edge1.pem
    """
    installation = installation_of(config, bundle)
    try:
        renewed = trio.run(renew, installation)
    except Refused as refused:
        raise CommandError.refused(refused) from None
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except CheckFailed as failure:
        reason = Reason[failure.reason.upper()] if failure.reason else None
        code = exit_code_of(reason) if reason else ExitCode.FAILED
        raise CommandError(code, f"{failure.detail}; {failure.fix}", reason=reason) from None
    validity = validity_of(renewed.bundle.chain_pem)
    if as_json:
        answer = {"identity": str(renewed.bundle.identity), "serial": validity.serial}
        print_json({**answer, "ends": as_iso(validity.ends), "server": renewed.server})
    else:
        ends = as_minute(validity.ends)
        click.echo(f"{renewed.bundle.identity} is valid until {ends}, renewed by {renewed.server}.")
