"""The first run of a server that is told by a variable to make an installation, as a container is.

``QANAT_INIT_NAME`` has the names by which agents and users reach it, separated by commas; the first is the
main one. What ``qanat-server init`` makes is made once, in an empty data folder. A configuration that is
there already stays, and may lie on a file system that cannot be written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from certs.ca import default_trust_domain
from tunnel_core.cli.command_line import CommandError, ExitCode
from tunnel_core.config.loader import ConfigError, load, read
from tunnel_core.config.types import ListenAddress
from tunnel_core.telemetry.logs import log_event
from tunnel_server.commands.config_text import Ports
from tunnel_server.commands.init import install_or_say, server_names, with_loopback
from tunnel_server.commands.installation import Installation
from tunnel_server.config import ServerConfig

INIT_NAME = "QANAT_INIT_NAME"
_log = logging.getLogger("qanat.server")


def install_if_told(environ: Mapping[str, str], config_file: Path) -> Installation | None:
    """What was made; None if nothing was wanted, or all is there. Raises ``CommandError``."""
    names = [name.strip() for name in environ.get(INIT_NAME, "").split(",") if name.strip()]
    if not names:
        return None
    plan = _plan(server_names(names), config_file.absolute(), environ)
    if not plan.is_unmade:
        return None
    install_or_say(plan)
    return plan


def _plan(names: tuple[str, ...], file: Path, environ: Mapping[str, str]) -> Installation:
    is_there = os.path.lexists(file)  # no for what may not be looked at; init then says so
    try:
        if is_there:
            config = load(file, ServerConfig, environ=environ)
        else:
            proposed = {"trust_domain": default_trust_domain(names[0])}
            config = read(proposed, file, ServerConfig, environ=environ)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    return Installation(
        data_dir=config.data_dir,
        config_file=file,
        operator_bundle=config.data_dir / "user.pem",
        trust_domain=config.trust_domain,
        names=names,
        all_names=with_loopback(names),
        ports=Ports(_port(config.agents.listen, 7001), _port(config.https.listen, 7002)),
        writes_config=not is_there,
    )


def _port(listen: tuple[ListenAddress, ...], default: int) -> int:
    return listen[0].port if listen else default


def say_made(made: Installation) -> None:
    """Says what to do next, and nothing secret."""
    log_event(
        _log,
        logging.INFO,
        "made a new server; next: a token for each node",
        names=", ".join(made.names),
        trust_domain=made.trust_domain,
        data_dir=made.data_dir,
        operator_bundle=made.operator_bundle,
        command="qanat-server token create --node NAME",
    )
