"""A shell beside bulk on a thin link: the extra time of a key, and the bulk's share of the link."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from bench.link import Link, Starting, can_measure, open_link
from bench.load import LoadError
from bench.processes import BenchError
from bench.rounds import Row
from bench.systems import qanat, ssh
from bench.systems.system import System
from bench.thin_link import (
    LINES,
    LOADS,
    QUEUES_SECONDS,
    WORST_LOAD,
    Line,
    Result,
    type_beside,
)
from bench.world import World

_Cell: TypeAlias = tuple[str, float]
"""A load, and the length of the link's queue in seconds."""
_KEYS = {"keystroke_extra_ms": LINES["20mbit"], "keystroke_extra_ms_thin": LINES["2mbit"]}
_WORST: list[_Cell] = [(WORST_LOAD, queue_seconds) for queue_seconds in QUEUES_SECONDS]
"""A quick run measures only the first, which was the worse one for the product."""


def measure(world: World) -> Iterator[Row]:
    keys = [key for key in _KEYS if can_measure(world, key, quick=key == "keystroke_extra_ms")]
    if not keys:
        can_measure(world, "bulk_share", quick=True)
        return
    with open_link(world) as link:
        for key in keys:
            line = _KEYS[key]
            results = _measure_cells(world, link, qanat.running, line, _cells(world))
            yield _extra(key, results, line)
            if key == "keystroke_extra_ms":
                yield _share(results)
            yield from _against_ssh(world, link, key, results)


def _cells(world: World) -> list[_Cell]:
    return list(itertools.product(LOADS, QUEUES_SECONDS)) if world.plan.whole else _WORST[:1]


def _measure_cells(
    world: World, link: Link, start: Starting[System], line: Line, cells: Sequence[_Cell]
) -> Mapping[_Cell, Result]:
    return {cell: _type(world, link, start, line, cell) for cell in cells}


def _type(world: World, link: Link, start: Starting[System], line: Line, cell: _Cell) -> Result:
    load, queue_seconds = cell
    link.set(line, queue_seconds)
    with link.running(start, world.fresh("keys")) as (system, arrived):
        return type_beside(system.to, arrived, LOADS[load], line, world.plan.typing_seconds)


def _extra(key: str, results: Mapping[_Cell, Result], line: Line) -> Row:
    samples = {_name(cell): [1e3 * result.extra_seconds] for cell, result in results.items()}
    worst = max(samples, key=lambda name: samples[name][0])
    note = f"{line.round_trip_seconds * 1e3:g} ms round trip; worst of {len(results)}: {worst}"
    return Row(key, samples[worst][0], "ms", samples, note=note)


def _share(results: Mapping[_Cell, Result]) -> Row:
    samples = {
        f"{_name(cell)} {direction}": [share]
        for cell, result in results.items()
        for direction, share in result.shares.items()
    }
    worst = min(samples, key=lambda name: samples[name][0])
    return Row("bulk_share", samples[worst][0], "of the rate", samples, note=f"least: {worst}")


def _name(cell: _Cell) -> str:
    return f"{cell[0]}/{cell[1] * 1e3:g}ms"


def _against_ssh(world: World, link: Link, key: str, results: Mapping[_Cell, Result]) -> Iterator[Row]:
    """Yield the row against `ssh -R` under the worst load. There is none if `ssh -R` loses keys."""
    if not world.plan.whole or world.no_ssh():
        return
    try:
        ssh_results = _measure_cells(world, link, ssh.running, _KEYS[key], _WORST)
    except (LoadError, BenchError) as error:
        world.skipped[f"vs_ssh.{key}"] = str(error)
        return
    samples = {
        name: [1e3 * cells[cell].extra_seconds for cell in _WORST]
        for name, cells in (("qanat", results), ("ssh", ssh_results))
    }
    shares = ", ".join(
        f"{_name(cell)} {min(result.shares.values()):.2f}" for cell, result in ssh_results.items()
    )
    note = f"worst of {', '.join(map(_name, _WORST))}; share of the bulk of ssh: {shares}"
    yield Row(key, max(samples["qanat"]) / max(samples["ssh"]), "ms", samples, inside="vs_ssh", note=note)
