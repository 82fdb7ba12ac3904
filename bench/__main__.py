"""`python -m bench [--quick] [--json] [ROW...]`: measure the product beside its baselines."""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import click

from bench.figures import BESIDE_OTHERS, FAMILIES
from bench.load import LoadError
from bench.plan import QUICK, WHOLE
from bench.processes import BenchError
from bench.report import Report, describe_machine, known_rows, lines
from bench.world import World, open_world


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds: under 90 s in all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.argument("rows", nargs=-1, metavar="[ROW]...")
def main(quick: bool, as_json: bool, rows: tuple[str, ...]) -> None:
    """Measure the tunnel as ratios against bare grpc.aio, ssh -R and no tunnel at all.

    ROW is a figure (download_vs_grpc) or a family (bulk); without ROW all are measured. A missed floor is
    shown and is not an error; the exit code is 1 only if a figure cannot be measured. The rows of a thin
    link need root and network namespaces; without these they are skipped by name. The family paths counts
    the calls and files that one byte and one connection take; `python -m bench.paths` lists the functions.
    """
    report = Report(quick)
    families = _chosen(rows)
    _raise_descriptor_limit()
    if not as_json:
        click.echo(describe_machine())
    # SIGTERM ends the bench like Ctrl-C, so that no namespace and no process is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="qanat-bench-") as folder,
        open_world(QUICK if quick else WHOLE, Path(folder)) as world,
    ):
        _measure_all(families, world, report)
        report.skipped.update(world.skipped)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        click.echo("\n".join(lines(report)))
        click.echo(f"{time.monotonic() - started:.0f} s")
    sys.exit(1 if report.broken else 0)


def _chosen(rows: Sequence[str]) -> list[str]:
    wanted = set(rows)
    known = {word for family, keys in FAMILIES.items() for word in (family, *keys)}
    if unknown := wanted - known:
        raise click.UsageError(f"no such row: {', '.join(sorted(unknown))}; known: {known_rows(FAMILIES)}")
    return [family for family, keys in FAMILIES.items() if not wanted or wanted & {family, *keys}]


def _measure_all(families: Sequence[str], world: World, report: Report) -> None:
    with _beside(world) as pool:
        in_background: list[Future[None]] = []
        for family in families:
            if family in BESIDE_OTHERS:
                in_background.append(pool.submit(_measure, family, world, report))
            else:
                _measure(family, world, report)
        for future in in_background:
            future.result()


@contextlib.contextmanager
def _beside(world: World) -> Iterator[ThreadPoolExecutor]:
    """Threads for the rows that are measured beside others. An early end of the others ends these rows."""
    with ThreadPoolExecutor() as pool:
        try:
            yield pool
        except BaseException:
            world.ended.set()
            raise


def _measure(family: str, world: World, report: Report) -> None:
    started = time.monotonic()
    try:
        for row in importlib.import_module(f"bench.rows.{family}").measure(world):
            report.rows.append(row)
    except (BenchError, LoadError, OSError) as error:
        report.broken[family] = "".join(traceback.format_exception_only(error)).strip()
    click.echo(f"measured {family} in {time.monotonic() - started:.0f} s", err=True)


def _raise_descriptor_limit() -> None:
    """Raise the limit for the load and its children, which hold many sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
