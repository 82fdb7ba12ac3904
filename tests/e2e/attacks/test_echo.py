"""The echo reports a server that stops and a stream that breaks, and no other event."""

from __future__ import annotations

import time

import pytest

from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.ground import Ground


def test_the_echo_reports_nothing_at_rest(echo: Echo) -> None:
    with echo.measured() as calm:
        time.sleep(1)  # how long it is measured
    calm.require(echo.rest)
    assert calm.trips.count > 50


def test_a_server_that_stands_still_is_noticed(site: Ground, echo: Echo) -> None:
    with echo.measured() as under:
        site.server.process.pause()
        time.sleep(0.7)  # how long it stands still
        site.server.process.resume()
    assert not under.trips.failures
    with pytest.raises(AssertionError, match="allowed"):
        under.require(echo.rest)


def test_a_stream_that_breaks_is_noticed(site: Ground, echo: Echo) -> None:
    with echo.measured() as under:
        site.agent.process.kill()
        site.agent.start()
        site.wait_request()
    assert under.trips.failures
    with pytest.raises(AssertionError, match="failed"):
        under.require(echo.rest)
