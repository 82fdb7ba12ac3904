"""Steps of ``qanat-agent check``: this machine's part, the path to each server, each target."""

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
    """Take every step and report each at its end; return the command's exit code.

    Cancellation leaves no connection, and the running agent's session unchanged.
    """
    verdicts: list[Verdict] = []

    def note(result: CheckResult) -> None:
        verdicts.append(result.verdict)
        report(result)

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
    policy, timeout_seconds = installation.policy(), config.dial_timeout_seconds
    for result in await check_targets(policy, timeout_seconds, services, config.allow):
        note(result)
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
    """Check the node's certificate against its key and ``now``."""
    bundle = installation.bundle
    new_bundle = f"bring a new bundle: `qanat-server issue node {installation.node}`"
    try:
        leaf = describe(bundle.chain_pem)
        fits = key_fits(Credential(bundle.chain_pem, bundle.key_pem))
    except ValueError as error:
        detail = f"{installation.bundle_file} cannot be read: {error}"
        return CheckResult("certificate", Verdict.FAIL, detail, new_bundle)
    clock = f"this machine's clock says {as_minute(now)}"
    if not fits:
        detail = f"key and certificate of {installation.bundle_file} do not belong together"
        return CheckResult("certificate", Verdict.FAIL, detail, new_bundle)
    if now < leaf.begins:
        detail = f"the certificate begins on {as_minute(leaf.begins)}, but {clock}"
        return CheckResult("certificate", Verdict.FAIL, detail, "set the clock: `timedatectl set-ntp true`")
    if now > leaf.ends:
        detail = f"the certificate ended on {as_minute(leaf.ends)}; {clock}"
        rejoin = "join again with a new token (`qanat-agent join SERVER --again`), or "
        return CheckResult(
            "certificate", Verdict.FAIL, detail, f"if the clock is right, {rejoin}{new_bundle}"
        )
    needs_bundle = not bundle.https and leaf.ends - now < _SOON  # without a server the agent cannot renew
    hint = f", in {(leaf.ends - now).days} days: {new_bundle}" if needs_bundle else ""
    return CheckResult("certificate", Verdict.PASS, f"{bundle.identity}, until {as_minute(leaf.ends)}{hint}")


def _refuse(stream: TunnelStream) -> None:
    stream.refuse(Reason.AGENT_STOPPING, "this is only a check")  # a server sends no stream to a probe
