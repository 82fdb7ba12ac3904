"""Installation at the first run of a server, requested by a variable, for example in a container.

``QANAT_INIT_NAME`` has the names by which agents and users reach the server, separated by commas. The first
is the main name. The run installs into an empty data folder as ``qanat-server init`` does, once. An existing
configuration stays, and may be on a read-only file system.
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
from tunnel_server.commands.init import install_for_command, server_names, with_loopback
from tunnel_server.commands.installation import Installation
from tunnel_server.config import ServerConfig

INIT_NAME = "QANAT_INIT_NAME"
_log = logging.getLogger("qanat.server")


def install_if_requested(environ: Mapping[str, str], config_file: Path) -> Installation | None:
    """Install a server if the variable is set and none is installed. Return the installation, else None.

    Raises ``CommandError``.
    """
    names = [name.strip() for name in environ.get(INIT_NAME, "").split(",") if name.strip()]
    if not names:
        return None
    plan = _plan(server_names(names), config_file.absolute(), environ)
    if not plan.needs_installation:
        return None
    install_for_command(plan)
    return plan


def _plan(names: tuple[str, ...], file: Path, environ: Mapping[str, str]) -> Installation:
    exists = os.path.lexists(file)  # False without the right to look; the installation then reports it.
    try:
        if exists:
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
        writes_config=not exists,
    )


def _port(listen: tuple[ListenAddress, ...], default: int) -> int:
    return listen[0].port if listen else default


def log_installation(made: Installation) -> None:
    """Log the new installation and the next step, without secrets."""
    log_event(
        _log,
        logging.INFO,
        "created a new server; next: a token for each node",
        names=", ".join(made.names),
        trust_domain=made.trust_domain,
        data_dir=made.data_dir,
        operator_bundle=made.operator_bundle,
        command="qanat-server token create --node NAME",
    )
