"""Entry point of ``qanat-agent``."""

from __future__ import annotations

import sys
from pathlib import Path

from tunnel_agent.defaults import OPS_LISTEN
from tunnel_core.runtime.startup import exit_on_sigterm, maybe_health, prepare_process


def entry_point() -> None:
    """Run ``qanat-agent``."""
    prepare_process()
    code = maybe_health(config_file, OPS_LISTEN)
    if code is not None:
        sys.exit(code)
    exit_on_sigterm()
    from tunnel_agent.main import main

    main(prog_name="qanat-agent")


def config_file() -> Path:
    """Return the path of the configuration without ``--config``."""
    from tunnel_core.config import paths

    return paths.agent_config_file()
