"""Rounds that alternate between the systems, so that changes of the machine affect all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

Samples: TypeAlias = Mapping[str, Sequence[float]]
"""One absolute value for each round, by the name of the system or condition."""


@dataclass(frozen=True)
class Row:
    """One ratio. `samples` are the absolute values behind it, in `unit`."""

    key: str
    value: float
    unit: str = ""
    samples: Samples = field(default_factory=dict)
    inside: str = ""
    """The object of `--json` that holds it, if not the top: `vs_ssh`, `direct`, `connect_mtls`, `paths`."""
    note: str = ""


class Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def alternate(candidates: Sequence[N], rounds: int, measure: Callable[[N], float]) -> Samples:
    """Measure A, B, C, A, B, C, ...; return `rounds` values for each candidate."""
    samples: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate in candidates:
            samples[candidate.name].append(measure(candidate))
    return samples


def ratio(samples: Samples, above: str, below: str) -> float:
    """Return the median of the rounds' ratios, in which a slow minute cancels out."""
    return statistics.median(a / b for a, b in zip(samples[above], samples[below], strict=True))


def against_baselines(key: str, unit: str, samples: Samples) -> Iterator[Row]:
    """Yield the rows `<key>_vs_grpc`, `key` inside `vs_ssh`, and the load's head-room inside `direct`.

    A baseline without samples has no row.
    """
    if samples.get("grpc"):
        yield Row(f"{key}_vs_grpc", ratio(samples, "qanat", "grpc"), unit, samples)
    yield from against_ssh(key, samples)
    above, below = ("qanat", "direct") if unit == "us" else ("direct", "qanat")
    yield Row(key, ratio(samples, above, below), inside="direct")


def against_ssh(key: str, samples: Samples) -> Iterator[Row]:
    """Yield the row `key` inside `vs_ssh` if ssh was measured."""
    if samples.get("ssh"):
        yield Row(key, ratio(samples, "qanat", "ssh"), inside="vs_ssh")
