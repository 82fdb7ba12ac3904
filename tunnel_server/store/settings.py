"""Settings of the store, from the configuration of the server."""

from __future__ import annotations

from tunnel_server.auth.users import LOOPBACK_USER
from tunnel_server.config import OnFailure, ServerConfig
from tunnel_server.store.store import FILE, StoreSettings
from tunnel_server.store.stream_store import StreamSettings

_MIN_NODES = 10_000


def settings_of(config: ServerConfig) -> StoreSettings:
    """Return the settings of the store of a server with this configuration."""
    audit, unix = config.audit, config.connect.unix
    return StoreSettings(
        path=config.data_dir / FILE,
        audit_file=audit.file,
        must_audit=audit.on_failure is OnFailure.REFUSE,
        audit_keep_days=audit.keep_days,
        audit_keep_lines=audit.keep_lines,
        keep_nodes=most_nodes(config),
        streams=StreamSettings(
            audit.keep_streams, keep_days={entry.entrance: entry.keep_days for entry in audit.streams}
        ),
        named_users=(
            *((peer.user for peer in unix.peer) if unix is not None else ()),
            *((LOOPBACK_USER,) if config.web.listen else ()),
        ),
        has_strangers=config.tls.user_trust_file is not None,
    )


def most_nodes(config: ServerConfig) -> int:
    """Return the number of nodes without an agent to remember: twice a full server, and at least 10,000."""
    return max(_MIN_NODES, 2 * config.agents.max)
