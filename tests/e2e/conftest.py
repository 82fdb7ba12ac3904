"""Keep the end-to-end suites out of the everyday run. CI fails a skipped test, but in a shallow clone."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.support.processes import tools
from tests.support.processes.site import Site

# `python -m tests.e2e` sets this; a plain `pytest` collects nothing below this folder.
collect_ignore_glob = [] if tools.CHOSEN in os.environ else ["*"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and tools.in_ci() and tools.SHALLOW not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {call.excinfo and call.excinfo.value}"
    if report.failed:
        _show_logs(item, report)
    return report


def _show_logs(item: pytest.Item, report: pytest.TestReport) -> None:
    """How the log of each program of the test's site ends."""
    site = getattr(item, "funcargs", {}).get("site")
    if isinstance(site, Site):
        for process in (site.targets, *(program.process for program in site.programs)):
            report.sections.append((f"log of {process.name}", process.log_tail()))


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether to run the long form."""
    return tools.is_long()
