"""One renewal: the node shows its certificate and gets the next, for a new key; then the bundle is another.

It runs in a process of its own, so that a running agent is spared what making keys and reading certificates
costs in memory. Nothing of the old bundle is lost until the new one is whole on the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from certs.bundle import Bundle, split_pem
from certs.pkcs7 import chain_for
from certs.requests import NewRequest, make_request
from certs.x509 import facts_of, is_signed_by
from tunnel_agent.certificate import est_client
from tunnel_agent.certificate.node_files import held, place_of_bundle, prove_place, save_bundle
from tunnel_agent.certificate.retry import retry_while_busy
from tunnel_agent.certificate.trust import roots_among, verifying_context
from tunnel_agent.checks import CheckFailed
from tunnel_agent.installation import Installation, load_bundle
from tunnel_agent.network.server_path import ServerPath, https_port
from tunnel_core.reasons import Reason, Refused

_NEITHER = "bring a new bundle from the server, or join again: `qanat-agent join SERVER --again`"
_FIXES = {
    Reason.CERTIFICATE_EXPIRED: f"if both clocks are right, {_NEITHER}",
    Reason.ROOT_RETIRED: _NEITHER,
    Reason.UNAUTHENTICATED: _NEITHER,
    Reason.TOO_MANY_ENROLMENTS: "try again in a minute: a running agent does so by itself",
    Reason.SERVER_STOPPING: "wait for the server to come back: a running agent does so by itself",
}


@dataclass(frozen=True, slots=True)
class Renewed:
    """``server`` gave it."""

    bundle: Bundle
    server: str


async def renew(installation: Installation) -> Renewed:
    """Asks the servers in their order. Raises ``CheckFailed``, or ``Refused`` if one said no for good."""
    with held(place_of_bundle(installation.bundle_file).parent):
        bundle = load_bundle(installation.file, installation.bundle_file)
        prove_place(installation.bundle_file)  # else each try would cost a certificate that cannot be saved
        if not bundle.https:
            raise CheckFailed(f"{installation.bundle_file} names no server to renew at", _NEITHER)
        failures: list[CheckFailed] = []
        for server in bundle.https:
            try:
                renewed = await _renew_at(server, installation, bundle)
            except CheckFailed as failure:
                failures.append(failure)
                continue
            save_bundle(installation.bundle_file, renewed)
            return Renewed(renewed, server)
    raise CheckFailed("; ".join(failure.detail for failure in failures), failures[0].fix)


async def _renew_at(server: str, installation: Installation, bundle: Bundle) -> Bundle:
    patience = installation.config.session.connect_timeout_seconds
    own = installation.bundle_file
    way = ServerPath(https_port(server), installation.node, installation.proxy, patience, own)
    for _, step in way.steps():
        await step()
    request = make_request(bundle.identity)
    try:
        told = await est_client.cacerts(way, verifying_context(bundle.roots_pem))
        showing = verifying_context(bundle.roots_pem, client_file=own)
        leaf = await retry_while_busy(lambda: est_client.renew(way, showing, request.body))
    except est_client.ServerRefused as refused:
        if refused.reason in (Reason.REVOKED, Reason.WRONG_TRUST_DOMAIN, Reason.WRONG_ROLE):
            raise
        fix = _FIXES.get(refused.reason, "the server's log may say more")
        raise CheckFailed(f"{server}: {refused}", fix, refused.reason.word) from None
    return _next_bundle(bundle, request, leaf, told)


def _next_bundle(bundle: Bundle, request: NewRequest, leaf: bytes, told: Sequence[bytes]) -> Bundle:
    """The roots are those that the server tells now: so a new one comes before it is needed."""
    try:
        roots = roots_among(told)
        chain = chain_for(request.key_pem, [*split_pem(leaf), *told])
        given = facts_of(chain).identity
        leads = any(is_signed_by(split_pem(chain), root) for root in roots)
    except ValueError as error:
        raise CheckFailed(
            f"the certificate that came cannot be used: {error}", "see the server's log"
        ) from None
    if given != bundle.identity or not leads:
        raise Refused(
            Reason.BAD_CSR, f"the certificate that came is of {given}, or of no root of this server"
        )
    return replace(bundle, key_pem=request.key_pem, chain_pem=chain, roots_pem=b"".join(roots))
