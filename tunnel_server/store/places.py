"""Where a server's store lies, and how its configuration wants it."""

from __future__ import annotations

from tunnel_server.config import OnFailure, ServerConfig
from tunnel_server.store.store import FILE, StoreSettings


def settings_of(config: ServerConfig) -> StoreSettings:
    audit = config.audit
    return StoreSettings(
        path=config.data_dir / FILE,
        audit_file=audit.file,
        must_audit=audit.on_failure is OnFailure.REFUSE,
        audit_keep_days=audit.keep_days,
        audit_keep_lines=audit.keep_lines,
    )
