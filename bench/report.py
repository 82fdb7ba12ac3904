"""Results of a run, as a table and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import FIGURES, Figure
from bench.rounds import Row

_LOWER_IS_BETTER = ("p50", "rss", "kib", "rtts", "extra_ms")
_PACKAGES = ("grpcio", "trio", "cryptography", "protobuf")


@dataclass
class Report:
    """Results of a run: rows, and reasons by key for skipped and broken ones."""

    quick: bool
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> Mapping[str, Any]:
        """Return the JSON object: figures by key, groups as objects, absolute values in `samples`."""
        figures: dict[str, Any] = {}
        for row in self.rows:
            group = figures.setdefault(row.inside, {}) if row.inside else figures
            group[row.key] = round(row.value, 4)
        return {
            **figures,
            "missed_floors": [row.key for row in self.rows if mark(row) == "MISSED"],
            "skipped": self.skipped,
            "broken": self.broken,
            "quick": self.quick,
            "machine": machine(),
            "samples": {_path(row): _rounded(row) for row in self.rows if row.samples},
        }


def _path(row: Row) -> str:
    return f"{row.inside}.{row.key}" if row.inside else row.key


def _rounded(row: Row) -> Mapping[str, Any]:
    values = {name: [float(f"{value:.4g}") for value in values] for name, values in row.samples.items()}
    return {"unit": row.unit, "note": row.note, **values}


def mark(row: Row) -> str:
    """Return `goal`, `ok` (floor reached) or `MISSED`; for `vs_ssh` `ahead` or `behind`; else nothing."""
    figure = FIGURES.get(row.key)
    if row.inside or figure is None:
        return _against_ssh(row) if row.inside == "vs_ssh" else ""
    if figure.reaches(row.value, figure.goal):
        return "goal"
    return "ok" if figure.reaches(row.value, figure.floor) else "MISSED"


def _against_ssh(row: Row) -> str:
    lower = any(word in row.key for word in _LOWER_IS_BETTER)
    return "ahead" if (row.value <= 1 if lower else row.value >= 1) else "behind"


def lines(report: Report) -> Iterator[str]:
    """Yield the lines of the table: rows in the order of their measurement, then the groups."""
    yield f"{'figure':<22}{'value':>9}{'floor':>8}{'goal':>8}  {'':<8}absolute (medians)"
    for row in (row for row in report.rows if not row.inside):
        yield _line(row, FIGURES.get(row.key))
    for group in sorted({row.inside for row in report.rows if row.inside}):
        yield f"\n{_TITLES.get(group, group)}"
        for row in (row for row in report.rows if row.inside == group):
            yield _line(row, None)
    yield ""
    for word, reasons in (("skipped", report.skipped), ("BROKEN", report.broken)):
        for key, reason in reasons.items():
            yield f"{word}: {key}: {reason}"


_TITLES = {
    "vs_ssh": "vs_ssh: the product against `ssh -R`",
    "direct": "direct: head-room of the load and the targets, direct against the product",
    "connect_mtls": "connect_mtls: the `connect` entrance over mTLS against the `tcp` entrance",
    "paths": "paths: calls of the product's functions, both programs together, however fast the machine",
}


def _line(row: Row, figure: Figure | None) -> str:
    bars = f"{figure.floor:>8g}{figure.goal:>8g}" if figure else " " * 16
    return f"{row.key:<22}{row.value:>9.3g}{bars}  {mark(row):<8}{_absolute(row)}".rstrip()


def _absolute(row: Row) -> str:
    medians = [f"{name} {statistics.median(values):.4g}" for name, values in row.samples.items()]
    return ", ".join(medians) + (f" {row.unit}" if medians else "") + (f"; {row.note}" if row.note else "")


def machine() -> Mapping[str, Any]:
    """Return the machine, and the versions of Python and the libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "load_average": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        "ssh": _ssh_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _ssh_version() -> str:
    ssh = shutil.which("ssh")
    if ssh is None:
        return "not installed"
    return subprocess.run([ssh, "-V"], capture_output=True, text=True, check=False).stderr.strip()  # noqa: S603


def describe_machine() -> str:
    """Return the facts of `machine` as one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def known_rows(families: Mapping[str, Sequence[str]]) -> str:
    """Return the names of all families and figures, for an error message."""
    return ", ".join(key for family, keys in families.items() for key in (family, *keys))
