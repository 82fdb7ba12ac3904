"""Public addresses of a server: the names in its certificate, with the ports of its listeners."""

from __future__ import annotations

from collections.abc import Sequence

from certs.ca import LOOPBACK_NAMES
from certs.files import read_public
from certs.x509 import describe
from tunnel_core.config.types import ListenAddress
from tunnel_core.names import join_host_port
from tunnel_server.config import ServerConfig


class NoNames(Exception):  # noqa: N818 - named by what happened
    """The server's certificate cannot be read, so the server's names are unknown."""


def server_names(config: ServerConfig) -> list[str]:
    """Return the certificate's names, local ones only if it has no others. Raises ``NoNames``."""
    file = config.tls.certificate_file
    try:
        names = describe(read_public(file)).names
    except (OSError, ValueError) as error:
        raise NoNames(f"the server's certificate {file} cannot be read: {error}") from None
    return advertised_names(names)


def advertised_names(names: Sequence[str]) -> list[str]:
    """Return ``names`` without the local ones, unless there are no others."""
    return [name for name in names if name not in LOOPBACK_NAMES] or list(names)


def addresses(names: list[str], listen: tuple[ListenAddress, ...]) -> tuple[str, ...]:
    """Return ``host:port`` for each name and each configured port, without ports that the kernel chooses."""
    return _joined(names, [address.port for address in listen if address.port])


def bound_addresses(names: list[str], bound: Sequence[str]) -> tuple[str, ...]:
    """Return ``host:port`` for each name and each port of the running listeners ``bound`` (``host:port``)."""
    return _joined(names, [int(address.rpartition(":")[2]) for address in bound])


def _joined(names: list[str], ports: list[int]) -> tuple[str, ...]:
    return tuple(join_host_port(name, port) for port in dict.fromkeys(ports) for name in names)
