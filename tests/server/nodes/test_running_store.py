from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from tests.support.fakes.granting import store_everything_granted
from tests.support.processes.servers import Site
from tunnel_core.config.loader import load
from tunnel_server.config import ServerConfig
from tunnel_server.nodes.running_store import running_store


@pytest.mark.parametrize("has_grants", [False, True])
async def test_a_store_without_grants_is_reported_at_start_with_the_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, has_grants: bool
) -> None:
    site = Site(tmp_path)
    site.write()
    (tmp_path / "store.db").unlink()  # a lost store, beside an authority that is still there
    if has_grants:
        store_everything_granted(tmp_path / "store.db")
    async with trio.open_nursery() as nursery:
        async with running_store(
            load(site.config, ServerConfig), nursery, lambda: datetime.now(UTC)
        ) as store:
            assert bool(store.access.rules.grants) is has_grants
        nursery.cancel_scope.cancel()
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == (0 if has_grants else 1)
    assert all("qanat-server grant add --user NAME" in error for error in errors)
