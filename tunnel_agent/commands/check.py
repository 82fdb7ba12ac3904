"""``qanat-agent check``: check everything from this machine to the server and to the targets."""

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
    """Check configuration, certificate, the path to each server, and each target.

    A running agent keeps its session. Exits with 0 if every step passed, 1 if a step failed, 2 if the
    configuration cannot be used.

    \b
    Examples:
      qanat-agent check
      qanat-agent check --bundle edge1.pem
      qanat-agent check --json | jq '.findings[] | select(.verdict == "fail")'
    """
    results: list[CheckResult] = []
    code = trio.run(check_all, config, bundle, results.append if as_json else print_result)
    if as_json:
        findings = [{**asdict(result), "verdict": result.verdict.value} for result in results]
        print_json({"ok": code is ExitCode.OK, "findings": findings})
    click.get_current_context().exit(code)


def print_result(result: CheckResult) -> None:
    """Print one line, and the fix below it."""
    verdict = styled(result.verdict.name, colour=_COLOURS[result.verdict], bold=True)
    click.echo(f"{verdict}  {result.step:<12}{result.detail}")
    if result.fix:
        click.echo(f"      {'':<12}fix: {result.fix}")
