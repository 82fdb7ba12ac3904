"""``qanat-agent check``'s steps: this machine's part, the way to each server, each target."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from certs.x509 import Credential, describe, key_fits
from tunnel_agent.check_renewal import check_clock, check_renewal
from tunnel_agent.config import AgentConfig
from tunnel_agent.dial import Dialler
from tunnel_agent.findings import Finding, Report, Verdict
from tunnel_agent.load import Installation, load_installation
from tunnel_agent.probe import ServerProbe
from tunnel_agent.targets import Entry, Policy
from tunnel_agent.tls import TargetTls
from tunnel_core.bridge import open_bridge
from tunnel_core.command_line import ExitCode
from tunnel_core.config import ConfigError
from tunnel_core.humanize import as_minute
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.stream import Stream

_SOON = timedelta(days=30)
_DIALS_AT_ONCE = 8
_CLOSE_SECONDS = 1.0


async def check_all(config_file: Path | None, bundle_file: Path | None, report: Report) -> ExitCode:
    """Takes every step and reports each as it is done; returns the exit code that says how it went."""
    verdicts: list[Verdict] = []

    def note(finding: Finding) -> None:
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
            connector = installation.connector(bridge, _refuse, on_look=lambda _: None)
            await ServerProbe(server, installation, connector).run(note)
    for finding in await check_targets(installation.policy(), installation.config):
        note(finding)
    return ExitCode.FAILED if Verdict.FAIL in verdicts else ExitCode.OK


def _load(config_file: Path | None, bundle_file: Path | None, report: Report) -> Installation | None:
    try:
        installation = load_installation(config_file, bundle_file)
    except ConfigError as error:
        for problem in error.problems:
            place = f"{problem.file}: {problem.key}: " if problem.key else f"{problem.file}: "
            report(Finding("config", Verdict.FAIL, place + problem.message, problem.fix))
        return None
    exists = "" if installation.file.exists() else " does not exist: defaults"
    report(Finding("config", Verdict.PASS, f"{installation.file}{exists}"))
    return installation


def check_certificate(installation: Installation, now: datetime) -> Finding:
    """The node's own certificate against its key and this machine's clock."""
    bundle = installation.bundle
    new = f"bring a new one: `qanat-server issue node {installation.node}`"
    try:
        leaf = describe(bundle.chain_pem)
        fits = key_fits(Credential(bundle.chain_pem, bundle.key_pem))
    except ValueError as error:
        detail = f"{installation.bundle_file} cannot be read: {error}"
        return Finding("certificate", Verdict.FAIL, detail, new)
    clock = f"this machine's clock says {as_minute(now)}"
    if not fits:
        detail = f"key and certificate of {installation.bundle_file} do not belong together"
        return Finding("certificate", Verdict.FAIL, detail, new)
    if now < leaf.begins:
        detail = f"the certificate begins on {as_minute(leaf.begins)}, but {clock}"
        return Finding("certificate", Verdict.FAIL, detail, "set the clock: `timedatectl set-ntp true`")
    if now > leaf.ends:
        detail = f"the certificate ended on {as_minute(leaf.ends)}; {clock}"
        again = "join again with a new token (`qanat-agent join SERVER --again`), or "
        return Finding("certificate", Verdict.FAIL, detail, f"if the clock is right, {again}{new}")
    is_left = not bundle.https and leaf.ends - now < _SOON  # what names a server is renewed by itself
    soon = f", in {(leaf.ends - now).days} days: {new}" if is_left else ""
    return Finding("certificate", Verdict.PASS, f"{bundle.identity}, until {as_minute(leaf.ends)}{soon}")


def _refuse(stream: Stream) -> None:
    stream.refuse(Reason.AGENT_STOPPING, "this is only a check")  # a probe is never sent a stream


async def check_targets(policy: Policy, config: AgentConfig) -> list[Finding]:
    """Dials each service and each single target of ``allow``, some at once; findings in their order."""
    dialler = Dialler(policy, config.dial_timeout_seconds, TargetTls(policy.node, policy.file))
    services = (Target(service=service.name) for service in config.service)
    targets: list[Entry | Target] = [*services, *config.allow]
    found: dict[int, Finding] = {}
    limit = trio.CapacityLimiter(_DIALS_AT_ONCE)

    async def check(index: int, entry: Entry | Target) -> None:
        async with limit:
            found[index] = await _check_target(dialler, policy.file, entry)

    async with trio.open_nursery() as nursery:
        for index, entry in enumerate(targets):
            nursery.start_soon(check, index, entry)
    return [found[index] for index in range(len(targets))]


def _target_fix(reason: Reason, target: Target, file: str) -> str:
    match reason:
        case Reason.NAME_NOT_RESOLVED:
            return f"correct the name of {target} in {file}, or this machine's resolver (/etc/resolv.conf)"
        case Reason.TARGET_NOT_ALLOWED:
            return f"allow the address in {file}, if you trust the DNS of that name"
        case Reason.DIAL_UNREACHABLE:
            return f"give this machine a route to {target}, or correct {target} in {file}"
        case Reason.DIAL_TIMEOUT:
            return f"does a firewall drop the packets to {target}? else correct it in {file}"
        case Reason.TARGET_PROTOCOL:
            return f"is {target} in {file} really https? if so, correct its ca_file and verify"
        case Reason.DIAL_FAILED:
            return f"correct what is said here, or {target} in {file}"
        case Reason.NO_DESCRIPTORS:
            return "raise LimitNOFILE= of the agent, or ulimit -n"
        case _:
            return f"start what should answer there, or correct {target} in {file}"


async def _check_target(dialler: Dialler, file: str, entry: Entry | Target) -> Finding:
    target = entry if isinstance(entry, Target) else entry.single_target()
    if target is None:
        return Finding("target", Verdict.SKIP, f"{entry}: more than one address or port, not dialled")
    try:
        dialled = await dialler.dial(target, tls=True)
    except Refused as refused:
        return Finding("target", Verdict.FAIL, refused.detail, _target_fix(refused.reason, target, file))
    with trio.move_on_after(_CLOSE_SECONDS):
        await dialled.stream.aclose()
    where = f" at {dialled.address}" if dialled.address != str(target) else ""
    return Finding("target", Verdict.PASS, f"{target} answers{where}")
