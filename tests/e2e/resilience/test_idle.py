"""The cost of an agent without users: IP bytes on its link, both directions, for each hour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future

import pytest

from bench.exchanges import Count
from tests.e2e.resilience.idle import PROFILES

ALLOWED = {"default": 100_000, "metered": 15_000}
PATIENCE_SECONDS = 700


@pytest.mark.parametrize("profile", PROFILES)
def test_idle_bytes(
    idle_counts: Mapping[str, Future[Count]], profile: str, record_property: Callable[[str, object], None]
) -> None:
    count = idle_counts[profile].result(PATIENCE_SECONDS)
    record_property("bytes_per_hour", round(count.bytes_per_hour))
    assert count.bytes_per_hour <= ALLOWED[profile], f"{count.bytes_per_hour:.0f} bytes an hour from {count}"
