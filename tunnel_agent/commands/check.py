"""``qanat-agent check``: does everything from here to the server and to the targets work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import trio

from tunnel_agent.checks import CheckResult, Verdict
from tunnel_agent.commands.options import bundle_option, config_option, json_option
from tunnel_agent.diagnostics.check import check_all
from tunnel_core.cli.command_line import ExitCode, print_json
from tunnel_core.cli.terminal import styled

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.SKIP: "yellow"}


@click.command("check")
@config_option
@bundle_option
@json_option
def command(config: Path | None, bundle: Path | None, as_json: bool) -> None:
    """Check configuration, certificate, the way to each server, and each target.

    A running agent is not disturbed. Exits with 0 if all is well, 1 if a step failed, 2 if the
    configuration cannot be used.

    \b
    Examples:
      qanat-agent check
      qanat-agent check --bundle edge1.pem
      qanat-agent check --json | jq '.findings[] | select(.verdict == "fail")'
    """
    findings: list[CheckResult] = []
    code = trio.run(check_all, config, bundle, findings.append if as_json else print_finding)
    if as_json:
        shown = [{**asdict(finding), "verdict": finding.verdict.value} for finding in findings]
        print_json({"ok": code is ExitCode.OK, "findings": shown})
    click.get_current_context().exit(code)


def print_finding(finding: CheckResult) -> None:
    """One line, and the cure below it."""
    verdict = styled(finding.verdict.name, colour=_COLOURS[finding.verdict], bold=True)
    click.echo(f"{verdict}  {finding.step:<12}{finding.detail}")
    if finding.fix:
        click.echo(f"      {'':<12}fix: {finding.fix}")
