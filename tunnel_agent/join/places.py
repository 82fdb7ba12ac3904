"""Where a join puts a node's files, and where a first run looks for them."""

from __future__ import annotations

import os
from pathlib import Path

from tunnel_agent.certificate.node_places import Files
from tunnel_agent.config import AgentConfig
from tunnel_agent.installation import load_config
from tunnel_core.config import paths
from tunnel_core.config.loader import read


def files_of(config: Path | None) -> Files:
    """As a configuration that is there says, else beside the one that is named. Raises ``ConfigError``."""
    named = config or paths.named_config_file()
    file = (named or paths.agent_config_file()).absolute()
    if os.path.lexists(file):  # no for what may not be looked at; what comes next says so
        return Files(file, load_config(file, required=True).bundle_file)
    bundle = file.parent / "node.pem" if named else paths.joined_bundle_file()
    return Files(file, read({"bundle_file": str(bundle)}, file, AgentConfig).bundle_file)
