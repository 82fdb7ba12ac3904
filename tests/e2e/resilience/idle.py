"""Count the traffic of an idle agent on a link of its own, while other tests run on theirs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.exchanges import SETTLED_SECONDS, Count, count_exchanges
from tests.e2e.resilience.installation import made_site
from tests.support.net.emulated import emulated

PROFILES: Mapping[str, Mapping[str, Any]] = {"default": {}, "metered": {"link": {"profile": "metered"}}}
LONG_SECONDS = 600


def count_idle(profile: str, folder: Path, seconds: float, ended: threading.Event) -> Count:
    """Starts an agent with this profile, and counts for ``seconds``, or until ``ended``."""
    with (
        emulated() as net,
        made_site(net, folder, agent=PROFILES[profile]) as site,
    ):
        # No request first: after a stream that was busy the link is watched more closely for a while.
        site.recover()
        ended.wait(SETTLED_SECONDS)
        return count_exchanges(net.carried, seconds, ended)
