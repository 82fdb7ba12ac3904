"""The command that gives a new user access, because a user without a grant may open nothing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from tunnel_core.config import paths


def grant_hint(user: str, grants: Sequence[str] | None, config: Path | None) -> list[str]:
    """Return the command to paste for a user without grants; none for a user that has some.

    ``grants`` None: a server of before grants did not say.
    """
    if grants is None or grants:
        return []
    named = paths.config_argument(config, paths.server_config_file()) if config is not None else ""
    everything = "--verb connect,http,api --node '*' --target '*'"
    return [f"qanat-server grant add --user {shlex.quote(user)} {everything}{named}"]
