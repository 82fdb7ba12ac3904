"""``qanat-server service``: the server as a systemd service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from certs.bundle import BundleError, read_bundle
from tunnel_core.config import paths
from tunnel_core.config.loader import load
from tunnel_core.config.types import ListenAddress
from tunnel_core.runtime.health_probe import OpsEndpoint
from tunnel_core.service.commands import service_group
from tunnel_core.service.plan import Remains, ServicePlan, own_command
from tunnel_core.service.unit import ServiceSpec
from tunnel_server.config import ServerConfig

NAME = "qanat-server"
_USER = "qanat"
_RUNTIME = Path("/run") / _USER
_MIN_DEPTH = 3
"""Parts of a path that may be a data folder: ``/srv/qanat`` has three."""
_MARKS = ("ca", "server.pem", "store.db")


class ServerService:
    """The server's service. ``server.toml`` determines all its settings."""

    name = NAME

    def config_file(self) -> Path:
        return paths.system_config_file("server.toml")

    def plan(self, config: Path, groups: tuple[str, ...]) -> ServicePlan:
        """Return the plan for the configuration ``config``. Raises ``ConfigError``."""
        system = paths.system_data_folder()
        loaded = load(config, ServerConfig, data_dir=system, environ={}, required=False)
        named = paths.config_argument(config, self.config_file())
        return ServicePlan(
            spec=_spec(config, loaded, groups),
            config=config,
            data_folder=loaded.data_dir,
            reads=tuple(_reads(loaded)),
            ops_endpoint=OpsEndpoint(str(loaded.ops.listen or ""), loaded.ops.tls),
            up_path="/readyz",  # /healthz answers before the other listeners are open.
            problem=_problem(config, loaded, named),
            next_steps=(f"{NAME} token create --node edge1{named}", "qanat nodes", f"{NAME} service status"),
            remains=tuple(_remains(config, loaded)),
            steps_elsewhere=("# on each node: qanat-agent service uninstall --purge",),
        )


def _spec(config: Path, loaded: ServerConfig, groups: tuple[str, ...]) -> ServiceSpec:
    unix = loaded.connect.unix
    wanted = (unix.group,) if unix is not None and unix.group else ()
    is_usual = loaded.data_dir == paths.system_data_folder()
    return ServiceSpec(
        program=NAME,
        title="Qanat server",
        user=_USER,
        command=(*own_command(NAME), "run", "--config", str(config)),
        state_name=loaded.data_dir.name if is_usual else "",
        runtime_name=_RUNTIME.name,
        drain_seconds=loaded.drain_seconds,
        reloads=True,
        has_low_port=any(address.is_privileged for address in _listens(loaded)),
        groups=tuple(dict.fromkeys((*wanted, *groups))),
        write_folders=tuple(dict.fromkeys(map(str, _write_folders(loaded, is_usual)))),
    )


def _listens(loaded: ServerConfig) -> Iterator[ListenAddress]:
    yield from (*loaded.agents.listen, *loaded.https.listen, *loaded.web.listen)
    yield from (entrance.listen for entrance in loaded.tcp)
    if loaded.ops.listen is not None:
        yield loaded.ops.listen


def _write_folders(loaded: ServerConfig, is_usual: bool) -> Iterator[Path]:
    """Yield the folders to write to that systemd does not create.

    Systemd creates the runtime folder, and the data folder if it is the usual one.
    """
    if not is_usual:
        yield loaded.data_dir
    unix = loaded.connect.unix
    for file in (loaded.admin.socket, loaded.audit.file, unix.path if unix is not None else None):
        if file is None:
            continue
        if not file.is_relative_to(loaded.data_dir) and not file.is_relative_to(_RUNTIME):
            yield file.parent


def _reads(loaded: ServerConfig) -> Iterator[Path]:
    for file in (*loaded.credential_files, *loaded.web.files):
        if not file.is_relative_to(loaded.data_dir):
            yield file


def _problem(config: Path, loaded: ServerConfig, named: str) -> str:
    if not os.path.lexists(config):
        own = paths.config_folder() / config.name
        if config == paths.system_config_file("server.toml") and own != config and paths.exists(own):
            init = f"sudo {NAME} init --name tunnel.example.com"
            return (
                f"{config} does not exist; the server of {own} belongs to this user and cannot be a service;"
                f" create one for the machine as root: {init}"
            )
        return f"{config} does not exist; create a server first: {NAME} init --name tunnel.example.com{named}"
    folder = loaded.data_dir
    if len(folder.parts) < _MIN_DEPTH:
        return f"data_dir = {folder} would belong to the service with all its files; use a separate folder"
    try:
        entries = {entry.name for entry in folder.iterdir()}
    except OSError:
        return ""  # The folder does not exist, or this user may not read it.
    if entries and not entries & set(_MARKS):
        return f"data_dir = {folder} has files, but none of a server; is it the right folder?"
    return ""


def _remains(config: Path, loaded: ServerConfig) -> Iterator[Remains]:
    yield Remains(loaded.data_dir, "the authority of all nodes and users, their records, the server's key")
    yield Remains(config, "the configuration")
    bundle = paths.system_config_file("user.pem")
    try:
        identity = read_bundle(bundle).identity
    except (BundleError, OSError):
        return
    if identity.trust_domain == loaded.trust_domain:
        yield Remains(bundle, f"the bundle of {identity.name}, for this server only")


command = service_group(ServerService())
