"""Check that each target of a configuration answers."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from tunnel_agent.checks import CheckResult, Verdict
from tunnel_agent.targets.dialer import Dialler
from tunnel_agent.targets.policy import AllowEntry, Policy
from tunnel_agent.targets.tls import TargetTls
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused

_MAX_DIALS = 8
_CLOSE_SECONDS = 1.0


async def check_targets(
    policy: Policy, timeout_seconds: float, services: Iterable[str], entries: Iterable[AllowEntry]
) -> list[CheckResult]:
    """Dial each service by its name and each entry that is a single target, eight at once.

    The results are in the order of the arguments. An entry with several addresses or ports is skipped.
    ``timeout_seconds`` limits each dial. Cancelled, it leaves no connection open.
    """
    dialler = Dialler(policy, timeout_seconds, TargetTls(policy.node, policy.file))
    targets: list[AllowEntry | Target] = [*(Target(service=name) for name in services), *entries]
    results: dict[int, CheckResult] = {}
    limit = trio.CapacityLimiter(_MAX_DIALS)

    async def check(index: int, entry: AllowEntry | Target) -> None:
        async with limit:
            results[index] = await _check_target(dialler, policy.file, entry)

    async with trio.open_nursery() as nursery:
        for index, entry in enumerate(targets):
            nursery.start_soon(check, index, entry)
    return [results[index] for index in range(len(targets))]


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
            return f"repair the cause above, or correct {target} in {file}"
        case Reason.NO_DESCRIPTORS:
            return "raise LimitNOFILE= of the agent, or ulimit -n"
        case _:
            return f"start the program that should answer there, or correct {target} in {file}"


async def _check_target(dialler: Dialler, file: str, entry: AllowEntry | Target) -> CheckResult:
    target = entry if isinstance(entry, Target) else entry.single_target()
    if target is None:
        return CheckResult("target", Verdict.SKIP, f"{entry}: more than one address or port, not dialled")
    try:
        dialled = await dialler.dial(target, tls=True)
    except Refused as refused:
        return CheckResult("target", Verdict.FAIL, refused.detail, _target_fix(refused.reason, target, file))
    with trio.move_on_after(_CLOSE_SECONDS):
        await dialled.stream.aclose()
    where = f" at {dialled.address}" if dialled.address != str(target) else ""
    return CheckResult("target", Verdict.PASS, f"{target} answers{where}")
