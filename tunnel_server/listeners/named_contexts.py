"""TLS contexts of a listener with several certificates. The client's server name (SNI) chooses one."""

from __future__ import annotations

import ssl
from collections.abc import Sequence


class NamedContext(ssl.SSLContext):
    """A TLS context with the host names of its certificate."""

    names: tuple[str, ...] = ()

    def covers(self, host: str) -> bool:
        """Whether the certificate is valid for ``host``: by its exact name, or by a wildcard of one label."""
        return self.covers_exactly(host) or f"*.{host.partition('.')[2]}" in self.names

    def covers_exactly(self, host: str) -> bool:
        """Whether the certificate has the name ``host`` itself."""
        return host in self.names


class NamedContexts:
    """The contexts for new connections. The first one serves clients that send no name, or an unknown one."""

    def __init__(self, contexts: Sequence[NamedContext]) -> None:
        self._contexts: Sequence[NamedContext] = ()
        self.use(contexts)

    def use(self, contexts: Sequence[NamedContext]) -> None:
        """Replace all contexts in one step. Open connections keep the context of their handshake."""
        for context in contexts:
            context.sni_callback = self._choose
        self._contexts = contexts

    @property
    def current(self) -> ssl.SSLContext:
        """The context with which a handshake begins."""
        return self._contexts[0]

    def find(self, host: str) -> NamedContext | None:
        """Return the context whose certificate is valid for ``host``. An exact name precedes a wildcard."""
        exact = (context for context in self._contexts if context.covers_exactly(host))
        wildcard = (context for context in self._contexts if context.covers(host))
        return next(exact, None) or next(wildcard, None)

    def is_misdirected(self, used: ssl.SSLContext, host: str) -> bool:
        """Whether a request for ``host`` came over a connection with the certificate of other hosts.

        ``used`` is the context of the connection. A browser may send requests for several hosts over one
        connection, but only for hosts that the connection's certificate names.
        """
        return not (isinstance(used, NamedContext) and used.covers(host)) and self.find(host) is not None

    def _choose(self, tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        found = self.find(name.lower().removesuffix(".")) if name else None
        if found is not None:
            tls.context = found
