"""Command line with which a running agent starts a renewal."""

from __future__ import annotations

import sys
from pathlib import Path


def renewal_command(config: Path, bundle: Path) -> list[str]:
    """Return the command of a renewal. ``-P`` keeps Python from importing code of the working directory."""
    named = ["--config", str(config)] if config.exists() else []
    return [sys.executable, "-P", "-m", "tunnel_agent", "renew", "--json", *named, "--bundle", str(bundle)]
