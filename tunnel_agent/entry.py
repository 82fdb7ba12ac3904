"""Where ``qanat-agent`` begins."""

from __future__ import annotations

import sys
from pathlib import Path

from tunnel_agent.defaults import OPS_LISTEN
from tunnel_core.runtime.startup import maybe_health, obey_sigterm, prepare_process


def entry_point() -> None:
    """Runs ``qanat-agent``."""
    prepare_process()
    code = maybe_health(config_file, OPS_LISTEN)
    if code is not None:
        sys.exit(code)
    obey_sigterm()
    from tunnel_agent.main import main

    main(prog_name="qanat-agent")


def config_file() -> Path:
    """The configuration unless ``--config`` names one."""
    from tunnel_core.config import paths

    return paths.agent_config_file()
