"""How a running agent starts a renewal."""

from __future__ import annotations

import sys
from pathlib import Path


def renewal_command(config: Path, bundle: Path) -> list[str]:
    """What runs this in a process of its own; it looks for no code in the folder it is started in."""
    named = ["--config", str(config)] if config.exists() else []
    return [sys.executable, "-P", "-m", "tunnel_agent", "renew", "--json", *named, "--bundle", str(bundle)]
