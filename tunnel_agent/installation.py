"""An agent's configuration and bundle, and the values that follow from both."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from certs.bundle import Bundle, BundleError, read_bundle
from tunnel_agent.config import STATUS_SERVICE, AgentConfig, Service
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.targets.policy import Policy, Published
from tunnel_core.config import paths
from tunnel_core.config.loader import ConfigError, Problem, load
from tunnel_core.identity import Role
from tunnel_core.text_files import NotPlainText, read_text_file, trouble_with
from tunnel_core.wire import frames

_MAX_PASSWORD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Installation:
    """A configuration and a bundle that fit each other."""

    file: Path
    config: AgentConfig
    bundle_file: Path
    bundle: Bundle
    proxy: ProxyChoice

    @property
    def node(self) -> str:
        """The node's name."""
        return self.bundle.identity.name

    @property
    def servers(self) -> tuple[str, ...]:
        """Servers to attach to (``host:port``): the configuration's, else the bundle's."""
        return self.config.servers or self.bundle.agents

    @property
    def services(self) -> tuple[frames.Service, ...]:
        """The published services, as the agent sends them to the server."""
        own = (frames.Service(s.name, s.protocol.value, str(s.target)) for s in self.config.service)
        return (*own, frames.Service(STATUS_SERVICE, "http", "the agent's status page"))

    def policy(self) -> Policy:
        """Return the policy of the node."""
        return policy_of(self.node, str(self.file), self.config)


def policy_of(node: str, file: str, config: AgentConfig) -> Policy:
    """Return the policy of ``node`` by ``config``, which is in ``file``."""
    return Policy(
        node=node,
        file=file,
        allow=config.allow,
        services=map(_published, config.service),
        built_in=(STATUS_SERVICE,),
    )


def _published(service: Service) -> Published:
    ca_file = str(service.ca_file) if service.ca_file else ""
    return Published(service.name, service.target, service.protocol.value, ca_file, service.verify)


def load_installation(config_file: Path | None = None, bundle_file: Path | None = None) -> Installation:
    """Read the configuration, then the bundle. Raises ``ConfigError`` with a fix for each problem.

    A bundle alone is enough to attach, so the default configuration file may be absent; a named one must
    exist. ``bundle_file`` wins over the configuration.
    """
    file, required = place_of_config(config_file)
    config = load_config(file, required=required)
    bundle_path = bundle_file or config.bundle_file
    bundle = load_bundle(file, bundle_path, named=bundle_file is not None)
    installation = Installation(file, config, bundle_path, bundle, load_proxy(file, config))
    if not installation.servers:
        fix = 'add servers = ["tunnel.example.com:7001"]'
        raise _problem(file, "servers", "neither this file nor the bundle names a server", fix)
    return installation


def place_of_config(named: Path | None) -> tuple[Path, bool]:
    """Return the configuration file, and whether it must exist, as a named one must."""
    file = named or paths.named_config_file()
    return (file or paths.agent_config_file()).absolute(), file is not None


def load_config(file: Path, *, required: bool) -> AgentConfig:
    """Load the configuration at ``file``, or the defaults if the file may be absent and is.

    Raises ``ConfigError``.
    """
    config = load(file, AgentConfig, required=required, absent_fix=absent_fix(file))
    if config.ops.tls:
        fix = "use bearer_file, or leave the listener on loopback"
        raise _problem(file, "ops.tls", "a node's certificate is not a server's certificate", fix)
    return config


def absent_fix(file: Path) -> str:
    """Return the fix for a missing configuration ``file``."""
    return f"join a server: qanat-agent join SERVER --config {shlex.quote(str(file))}"


def load_bundle(file: Path, bundle_file: Path, *, named: bool = False) -> Bundle:
    """Load the node's bundle; ``named``: by an option, else by ``bundle_file`` of the configuration ``file``.

    Raises ``ConfigError``.
    """
    origin = ("--bundle", "") if named else (str(file), "bundle_file")
    new_bundle = (
        "join a server (`qanat-agent join SERVER`), or bring a bundle from `qanat-server issue node NAME`"
    )
    try:
        bundle = read_bundle(bundle_file)
    except BundleError as error:
        fix = _bundle_fix(file, error.__cause__, new_bundle)
        raise ConfigError((Problem(*origin, str(error), fix),)) from error
    if bundle.identity.role is not Role.NODE:
        message = f"{bundle_file} is the bundle of {bundle.identity}, not of a node"
        raise ConfigError((Problem(*origin, message, new_bundle),))
    return bundle


def _bundle_fix(file: Path, cause: BaseException | None, new_bundle: str) -> str:
    """Return the fix for a bundle that cannot be read; ``new_bundle`` is how to get another one."""
    match cause:
        case FileNotFoundError():
            return paths.or_as_root(file, new_bundle)
        case OSError():
            return paths.rights_hint(cause) or "correct bundle_file, or its rights"
        case ValueError():
            return new_bundle
        case _:
            return ""  # the error's text has the fix


def load_proxy(file: Path, config: AgentConfig) -> ProxyChoice:
    """Return the proxy settings of ``config``, with the password from its file. Raises ``ConfigError``."""
    password = ""
    if config.proxy_password_file is not None:
        try:
            password = read_text_file(config.proxy_password_file, _MAX_PASSWORD_BYTES).rstrip("\r\n")
        except (OSError, NotPlainText) as error:
            message = trouble_with(config.proxy_password_file, error)
            raise _problem(file, "proxy_password_file", message, "write the password into it") from None
    return ProxyChoice(config.proxy.reveal(), password, config.no_proxy)


def _problem(file: Path, key: str, message: str, fix: str) -> ConfigError:
    return ConfigError((Problem(str(file), key, message, fix),))
