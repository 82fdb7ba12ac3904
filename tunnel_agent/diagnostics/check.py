"""``qanat-agent check``'s steps: this machine's part, the way to each server, each target."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from certs.x509 import Credential, describe, key_fits
from tunnel_agent.attach.connector import connector_of
from tunnel_agent.checks import CheckResult, Report, Verdict
from tunnel_agent.diagnostics.check_renewal import check_clock, check_renewal
from tunnel_agent.diagnostics.server_probe import ServerProbe
from tunnel_agent.installation import Installation, load_installation
from tunnel_agent.targets.check import check_targets
from tunnel_core.carrier.asyncio_bridge import open_bridge
from tunnel_core.cli.command_line import ExitCode
from tunnel_core.config.loader import ConfigError
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Reason
from tunnel_core.streams.tunnel_stream import TunnelStream

_SOON = timedelta(days=30)


async def check_all(config_file: Path | None, bundle_file: Path | None, report: Report) -> ExitCode:
    """Takes every step and reports each as it is done; returns the exit code that says how it went."""
    verdicts: list[Verdict] = []

    def note(finding: CheckResult) -> None:
        verdicts.append(finding.verdict)
        report(finding)

    installation = _load(config_file, bundle_file, note)
    if installation is None:
        return ExitCode.USAGE
    note(check_certificate(installation, datetime.now(UTC)))
    note(await check_clock(installation))
    note(check_renewal(installation))
    async with open_bridge() as bridge:
        for server in installation.servers:
            connector = connector_of(installation, bridge, _refuse, on_state_change=lambda _: None)
            await ServerProbe(server, installation, connector).run(note)
    config = installation.config
    services = [service.name for service in config.service]
    for finding in await check_targets(
        installation.policy(), config.dial_timeout_seconds, services, config.allow
    ):
        note(finding)
    return ExitCode.FAILED if Verdict.FAIL in verdicts else ExitCode.OK


def _load(config_file: Path | None, bundle_file: Path | None, report: Report) -> Installation | None:
    try:
        installation = load_installation(config_file, bundle_file)
    except ConfigError as error:
        for problem in error.problems:
            place = f"{problem.file}: {problem.key}: " if problem.key else f"{problem.file}: "
            report(CheckResult("config", Verdict.FAIL, place + problem.message, problem.fix))
        return None
    exists = "" if installation.file.exists() else " does not exist: defaults"
    report(CheckResult("config", Verdict.PASS, f"{installation.file}{exists}"))
    return installation


def check_certificate(installation: Installation, now: datetime) -> CheckResult:
    """The node's own certificate against its key and this machine's clock."""
    bundle = installation.bundle
    new = f"bring a new one: `qanat-server issue node {installation.node}`"
    try:
        leaf = describe(bundle.chain_pem)
        fits = key_fits(Credential(bundle.chain_pem, bundle.key_pem))
    except ValueError as error:
        detail = f"{installation.bundle_file} cannot be read: {error}"
        return CheckResult("certificate", Verdict.FAIL, detail, new)
    clock = f"this machine's clock says {as_minute(now)}"
    if not fits:
        detail = f"key and certificate of {installation.bundle_file} do not belong together"
        return CheckResult("certificate", Verdict.FAIL, detail, new)
    if now < leaf.begins:
        detail = f"the certificate begins on {as_minute(leaf.begins)}, but {clock}"
        return CheckResult("certificate", Verdict.FAIL, detail, "set the clock: `timedatectl set-ntp true`")
    if now > leaf.ends:
        detail = f"the certificate ended on {as_minute(leaf.ends)}; {clock}"
        again = "join again with a new token (`qanat-agent join SERVER --again`), or "
        return CheckResult("certificate", Verdict.FAIL, detail, f"if the clock is right, {again}{new}")
    is_left = not bundle.https and leaf.ends - now < _SOON  # what names a server is renewed by itself
    soon = f", in {(leaf.ends - now).days} days: {new}" if is_left else ""
    return CheckResult("certificate", Verdict.PASS, f"{bundle.identity}, until {as_minute(leaf.ends)}{soon}")


def _refuse(stream: TunnelStream) -> None:
    stream.refuse(Reason.AGENT_STOPPING, "this is only a check")  # a probe is never sent a stream
