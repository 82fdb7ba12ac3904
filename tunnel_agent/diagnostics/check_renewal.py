"""Checks of the clock and of the conditions of a renewal, for ``qanat-agent check``."""

from __future__ import annotations

from datetime import UTC, datetime

from certs.validity import validity_of
from tunnel_agent.certificate.est_client import JoinPage, join_page
from tunnel_agent.certificate.node_files import place_of_bundle, require_replaceable, require_writable
from tunnel_agent.certificate.trust import verifying_context_without_dates
from tunnel_agent.checks import CheckFailed, CheckResult, Verdict
from tunnel_agent.installation import Installation
from tunnel_agent.network.clock_check import compare_clocks
from tunnel_agent.network.server_path import ServerPath, https_port
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Refused


async def check_clock(installation: Installation) -> CheckResult:
    """Compare this machine's clock with that of the first server that answers.

    The server's certificate is verified, except for its dates.
    """
    failures: list[str] = []
    for server in installation.bundle.https:
        try:
            page = await _ask(server, installation)
        except (CheckFailed, Refused) as error:
            failures.append(error.detail)
            continue
        try:
            return CheckResult("clock", Verdict.PASS, compare_clocks(server, page.behind))
        except CheckFailed as failure:
            return failure.as_result("clock")
    cause = "; ".join(failures) or "the bundle names no HTTPS port of the server"
    return CheckResult("clock", Verdict.SKIP, f"not compared: {cause}")


async def _ask(server: str, installation: Installation) -> JoinPage:
    timeout_seconds = installation.config.session.connect_timeout_seconds
    path = ServerPath(https_port(server), installation.node, installation.proxy, timeout_seconds, None)
    for _, step in path.steps():
        await step()
    context = verifying_context_without_dates(installation.bundle.roots_pem)
    return await join_page(path, context, lambda: datetime.now(UTC))


def check_renewal(installation: Installation) -> CheckResult:
    """Check that this user may write a new bundle; return when the renewal is due."""
    bundle = installation.bundle
    if not bundle.https:
        detail = f"{installation.bundle_file} names no HTTPS port of the server, so the agent cannot renew it"
        return CheckResult("renewal", Verdict.SKIP, detail)
    try:
        require_replaceable(installation.bundle_file)
        require_writable(place_of_bundle(installation.bundle_file).parent)
    except CheckFailed as failure:
        return failure.as_result("renewal")
    try:
        due = validity_of(bundle.chain_pem).renewal(0.5)
    except ValueError as error:
        return CheckResult("renewal", Verdict.SKIP, f"the certificate's dates cannot be read: {error}")
    return CheckResult("renewal", Verdict.PASS, f"about {as_minute(due)}, at {', '.join(bundle.https)}")
