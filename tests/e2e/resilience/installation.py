"""An installation as the documentation describes it, with no shortened times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.net.emulated import Emulated
from tests.support.processes.site import Site

# The far ends of uploads listen in the test's own process, where the kernel finds room.
_ALLOWED = "localhost:1024-65535"


@contextlib.contextmanager
def made_site(
    net: Emulated,
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    agent: Mapping[str, Any] | None = None,
) -> Iterator[Site]:
    """Not started yet. ``changes`` are for ``server.toml``, ``agent`` for ``agent.toml``."""
    site = Site.made(net.network, folder, {"session": {}, "limits": {}, **(changes or {})})
    site.agent.configure(site.server, allow=[_ALLOWED], **(agent or {}))
    try:
        yield site
    finally:
        site.hang_up()
        site.stop()
