"""Rounds that alternate between the systems, so that the machine's mood touches all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

Samples: TypeAlias = Mapping[str, Sequence[float]]
"""By the name of a system or condition: one absolute value for each round."""


@dataclass(frozen=True)
class Row:
    """One ratio. `samples` are what it was made of, in `unit`, for people who read along."""

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
    """A, B, C, A, B, C, ...: `rounds` values for each."""
    samples: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate in candidates:
            samples[candidate.name].append(measure(candidate))
    return samples


def ratio(samples: Samples, above: str, below: str) -> float:
    """The median of the ratios of each round, so that a slow minute cancels out."""
    return statistics.median(a / b for a, b in zip(samples[above], samples[below], strict=True))


def against_baselines(key: str, unit: str, samples: Samples) -> Iterator[Row]:
    """`<key>_vs_grpc`, `key` inside `vs_ssh`, and the head-room of the load inside `direct`."""
    yield Row(f"{key}_vs_grpc", ratio(samples, "qanat", "grpc"), unit, samples)
    yield from against_ssh(key, samples)
    above, below = ("qanat", "direct") if unit == "us" else ("direct", "qanat")
    yield Row(key, ratio(samples, above, below), inside="direct")


def against_ssh(key: str, samples: Samples) -> Iterator[Row]:
    if samples.get("ssh"):
        yield Row(key, ratio(samples, "qanat", "ssh"), inside="vs_ssh")
