"""``qanat-agent check``'s look at the clock and at what a renewal needs."""

from __future__ import annotations

from datetime import UTC, datetime

from certs.life import life_of
from tunnel_agent.certificate.est_client import JoinPage, join_page
from tunnel_agent.certificate.node_files import place_of_bundle, require_replaceable, require_writable
from tunnel_agent.certificate.trust import trusting_at_any_time
from tunnel_agent.checks import CheckFailed, CheckResult, Verdict
from tunnel_agent.installation import Installation
from tunnel_agent.network.clock_check import compare_clocks
from tunnel_agent.network.server_path import ServerPath, https_port
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Refused


async def check_clock(installation: Installation) -> CheckResult:
    """This machine's clock against that of the first server that answers, and is proven at any time."""
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
            return failure.finding("clock")
    why = "; ".join(failures) or "the bundle names no HTTPS port of the server"
    return CheckResult("clock", Verdict.SKIP, f"not compared: {why}")


async def _ask(server: str, installation: Installation) -> JoinPage:
    patience = installation.config.session.connect_timeout_seconds
    way = ServerPath(https_port(server), installation.node, installation.proxy, patience, None)
    for _, step in way.steps():
        await step()
    context = trusting_at_any_time(installation.bundle.roots_pem)
    return await join_page(way, context, lambda: datetime.now(UTC))


def check_renewal(installation: Installation) -> CheckResult:
    """Whether this user could write a new bundle, and when there will be one."""
    bundle = installation.bundle
    if not bundle.https:
        detail = f"{installation.bundle_file} names no HTTPS port of the server, so it is not renewed"
        return CheckResult("renewal", Verdict.SKIP, detail)
    try:
        require_replaceable(installation.bundle_file)
        require_writable(place_of_bundle(installation.bundle_file).parent)
    except CheckFailed as failure:
        return failure.finding("renewal")
    try:
        due = life_of(bundle.chain_pem).renewal(0.5)
    except ValueError as error:
        return CheckResult("renewal", Verdict.SKIP, f"the certificate's dates cannot be read: {error}")
    return CheckResult("renewal", Verdict.PASS, f"about {as_minute(due)}, at {', '.join(bundle.https)}")
