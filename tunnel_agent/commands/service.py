"""``qanat-agent service``: the agent as a systemd service."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from certs.bundle import Bundle, BundleError, read_bundle
from tunnel_agent.config import AgentConfig
from tunnel_core.config import paths
from tunnel_core.config.loader import load
from tunnel_core.runtime.health_probe import OpsEndpoint
from tunnel_core.service.commands import service_group
from tunnel_core.service.plan import Remains, ServicePlan, own_command
from tunnel_core.service.unit import ServiceSpec, is_hidden

NAME = "qanat-agent"


class AgentService:
    """The agent's service, planned from ``agent.toml`` and the path of the bundle."""

    name = NAME

    def config_file(self) -> Path:
        """Return the configuration of a system service."""
        return paths.system_config_file("agent.toml")

    def plan(self, config: Path, groups: tuple[str, ...]) -> ServicePlan:
        """Return the plan of the service. Raises ``ConfigError``."""
        loaded = load(config, AgentConfig, environ={}, required=False)
        bundle = _bundle_file(config, loaded)
        state = paths.system_agent_folder()
        is_usual = bundle.parent == state
        named = paths.config_argument(config, self.config_file())
        return ServicePlan(
            spec=_spec(config, loaded, bundle, groups),
            config=config,
            data_folder=state if is_usual else None,
            reads=tuple(_reads(loaded, None if is_usual else bundle)),
            ops_endpoint=OpsEndpoint(str(loaded.ops.listen or "")),
            problem=_problem(config, bundle),
            notes=tuple(_notes(config, loaded, bundle, groups)),
            next_steps=(f"{NAME} status{named}", f"{NAME} check{named}", f"{NAME} service status"),
            remains=tuple(_remains(config, loaded, bundle)),
            steps_elsewhere=tuple(_farewell(bundle)),
        )


def _bundle_file(config: Path, loaded: AgentConfig) -> Path:
    """Return the bundle's path; without a configuration, the path that ``join`` writes."""
    joined = paths.system_agent_folder() / "node.pem"
    return loaded.bundle_file if os.path.lexists(config) else joined


def _spec(config: Path, loaded: AgentConfig, bundle: Path, groups: tuple[str, ...]) -> ServiceSpec:
    state = paths.system_agent_folder()
    own = bundle.parent not in (state, config.parent)
    listen = loaded.ops.listen
    return ServiceSpec(
        program=NAME,
        title="Qanat agent",
        user=NAME,
        command=(*own_command(NAME), "run", "--config", str(config)),
        state_name=state.name,
        drain_seconds=loaded.drain_seconds,
        has_low_port=listen is not None and listen.is_privileged,
        groups=groups,
        write_folders=(str(bundle.parent),) if own else (),
    )


def _reads(loaded: AgentConfig, bundle: Path | None) -> Iterator[Path]:
    files = [bundle, loaded.proxy_password_file, loaded.ops.bearer_file]
    yield from filter(None, (*files, *(service.ca_file for service in loaded.service)))


def _problem(config: Path, bundle: Path) -> str:
    named = paths.config_argument(config, paths.system_config_file("agent.toml"))
    join = (
        "make a token on the server, `qanat-server token create --node NAME`, and join here as root:"
        f" echo TOKEN | {NAME} join SERVER{named}"
    )
    if paths.is_absent(bundle):
        return f"{bundle} is not there; {join}"
    if os.path.lexists(config):
        return ""
    if paths.exists(bundle):
        join += f'; or, to use {bundle}, write at least this line into {config}: bundle_file = "{bundle}"'
    return f"{config} is not there; {join}"


def _notes(config: Path, loaded: AgentConfig, bundle: Path, groups: tuple[str, ...]) -> Iterator[str]:
    if bundle.parent == config.parent:
        place = paths.system_agent_folder() / bundle.name
        yield (
            f"the service cannot renew {bundle}, because it must not write in {bundle.parent}: move it to "
            f'{place}, write bundle_file = "{place}" into {config}, and run this command again'
        )
    for path in _unix_targets(loaded):
        if is_hidden(path):
            yield f"the service does not see {path}; let its program listen elsewhere, for example in /run"
        elif group := _missing_group(path, groups):
            yield f"only group {group} may open {path}; to allow it, run this command with --group {group}"


def _unix_targets(loaded: AgentConfig) -> list[Path]:
    services = (service.target.unix_path for service in loaded.service)
    entries = (entry.unix_path for entry in loaded.allow)
    return [Path(path) for path in dict.fromkeys((*services, *entries)) if path]


def _missing_group(path: Path, groups: tuple[str, ...]) -> str:
    """Return the group that the service's user needs to open a socket; empty if none is needed or helps."""
    try:
        status = path.stat()
        group = path.group()
    except (OSError, KeyError):
        return ""
    by_group = not status.st_mode & stat.S_IWOTH and status.st_mode & stat.S_IWGRP
    return group if by_group and group not in groups else ""


def _remains(config: Path, loaded: AgentConfig, bundle: Path) -> Iterator[Remains]:
    state = paths.system_agent_folder()
    if bundle.parent != state:
        yield Remains(bundle, "the node's key and certificate")
    yield Remains(state, "the node's key and certificate" if bundle.parent == state else "the agent's folder")
    if loaded.proxy_password_file is not None:
        yield Remains(loaded.proxy_password_file, "the password of the proxy")
    yield Remains(config, "the configuration")


def _farewell(bundle: Path) -> Iterator[str]:
    node = _node_of(bundle)
    if node is not None:
        yield f"qanat-server node revoke {node.identity.name}  # on the server: its certificate ends"


def _node_of(file: Path) -> Bundle | None:
    try:
        return read_bundle(file)
    except (BundleError, OSError):
        return None


command = service_group(AgentService())
