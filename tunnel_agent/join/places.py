"""Paths of a node's files, for a join and for a first run."""

from __future__ import annotations

import os
from pathlib import Path

from tunnel_agent.certificate.node_places import Files
from tunnel_agent.config import AgentConfig
from tunnel_agent.installation import load_config
from tunnel_core.config import paths
from tunnel_core.config.loader import read


def files_of(config: Path | None) -> Files:
    """Return the paths that an existing configuration names, else paths beside the named configuration.

    Raises ``ConfigError``.
    """
    named = config or paths.named_config_file()
    file = (named or paths.agent_config_file()).absolute()
    if os.path.lexists(file):  # False without permission; the next step reports that
        return Files(file, load_config(file, required=True).bundle_file)
    bundle = file.parent / "node.pem" if named else paths.joined_bundle_file()
    return Files(file, read({"bundle_file": str(bundle)}, file, AgentConfig).bundle_file)
