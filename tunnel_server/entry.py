"""Entry point of ``qanat-server``."""

from __future__ import annotations

import sys
from pathlib import Path

from tunnel_core.runtime.startup import exit_on_sigterm, maybe_health, prepare_process
from tunnel_server.defaults import OPS_LISTEN


def entry_point() -> None:
    """Run ``qanat-server``."""
    prepare_process()
    code = maybe_health(config_file, OPS_LISTEN)
    if code is not None:
        sys.exit(code)
    exit_on_sigterm()
    from tunnel_server import main

    main.entry_point()


def config_file() -> Path:
    """Return the configuration file for a command without ``--config``."""
    from tunnel_core.config import paths

    return paths.server_config_file()
