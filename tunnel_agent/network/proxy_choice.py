"""Which proxy the configuration and this process's environment name, asked anew for each connection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunnel_agent.network.proxy import Proxy, choose_proxy


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """What the configuration says about proxies; the environment is asked at each attempt."""

    proxy: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    no_proxy: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def proxy_for(self, server: str) -> Proxy | None:
        """The proxy that leads to ``server``, or None. Raises ``ProxyError``."""
        return choose_proxy(
            server,
            proxy=self.proxy,
            password=self.password,
            no_proxy=self.no_proxy,
            environment=self.environment,
        )
