"""The proxy settings of the configuration and of this process's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunnel_agent.network.proxy import Proxy, choose_proxy


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """Proxy settings of the configuration, and the environment, which is read for each connection."""

    proxy: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    no_proxy: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def proxy_for(self, server: str) -> Proxy | None:
        """Return the proxy for ``server`` (``host:port``), or None. Raises ``ProxyError``."""
        return choose_proxy(
            server,
            proxy=self.proxy,
            password=self.password,
            no_proxy=self.no_proxy,
            environment=self.environment,
        )
