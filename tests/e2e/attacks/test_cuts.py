"""30 random cuts in 200 MB each way beside ten echo streams: every byte arrives once and in its place."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.e2e.attacks.cutter import Knife, running_cutter
from tests.e2e.attacks.ground import Ground
from tests.e2e.resilience.flows import Download, Echo, Flow, Upload, running
from tests.support.processes import tools
from tests.support.processes.programs import AGENTS_PORT
from tests.support.processes.waiting import wait_until
from tunnel_core.names import join_host_port

CUTS = 30
BYTES = 200 * 1000 * 1000
ECHOES = 10
CUTTER_PORT = 7101
SEEDS = range(20 if tools.is_long() else 2)
_HOLD_SECONDS = (0.05, 1.5)
_KINDS = ["reset"] * 6 + ["end"] * 2 + ["hold"]


@contextlib.contextmanager
def _knife(site: Ground) -> Iterator[Knife]:
    """Relay the connection of the innocent node's agent."""
    with running_cutter(site.address, CUTTER_PORT, AGENTS_PORT) as made:
        site.configure(site.agent, servers=[join_host_port(site.address, CUTTER_PORT)])
        site.agent.process.kill()
        site.agent.start()
        site.wait_request()
        yield made


def test_every_hash_is_equal(tmp_path: Path) -> None:
    """Two seeds run side by side, each with an installation, because an agent mostly waits to retry."""
    with ThreadPoolExecutor(2) as pool:
        for seed, failure in zip(SEEDS, pool.map(lambda seed: _failure(tmp_path, seed), SEEDS), strict=True):
            assert failure is None, f"seed {seed}: {failure!r}"


def _failure(folder: Path, seed: int) -> BaseException | None:
    try:
        with Ground.running(folder / str(seed)) as site, _knife(site) as knife:
            _cut_and_compare(site, knife, random.Random(seed))  # noqa: S311 - the same cuts for the same seed
    except Exception as error:
        return error
    return None


def _cut_and_compare(site: Ground, knife: Knife, dice: random.Random) -> None:
    resumed = _resumed(site)
    bulk = Download(site, BYTES), Upload(site, BYTES)
    with running(*bulk, *(Echo(site) for _ in range(ECHOES))) as flows:
        for moved in sorted(dice.randrange(2 * BYTES) for _ in range(CUTS)):
            _wait_moved(bulk, moved)
            _cut(knife, dice)
        for flow in flows:
            flow.finish(60)
    assert _resumed(site) - resumed >= CUTS // 2  # a cut within a resumption counts as one with the next


def _resumed(site: Ground) -> float:
    return site.server.metrics().get('qanat_attaches_total{outcome="resumed"}', 0.0)


def _wait_moved(bulk: tuple[Flow, ...], count: int) -> None:
    def moved() -> bool:
        for flow in bulk:
            if flow.failure is not None:
                raise AssertionError(f"{flow.name} failed: {flow.failure!r}")
        return sum(flow.moved for flow in bulk) >= count

    wait_until(moved, f"{count} bytes to move", deadline_seconds=60)


def _cut(knife: Knife, dice: random.Random) -> None:
    kind = dice.choice(_KINDS)
    knife.do(kind)
    if kind == "hold":
        time.sleep(dice.uniform(*_HOLD_SECONDS))  # how long the link is silent
        knife.do("drop")
