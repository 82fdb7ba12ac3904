"""Renew the node's certificate: present the old one, get the next for a new key, replace the bundle.

A renewal runs in its own process, because making keys and reading certificates takes memory that a running
agent does not need otherwise. The old bundle stays until the new one is completely on the disk.
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

_NEW_BUNDLE = "bring a new bundle from the server, or join again: `qanat-agent join SERVER --again`"
_FIXES = {
    Reason.CERTIFICATE_EXPIRED: f"if both clocks are right, {_NEW_BUNDLE}",
    Reason.ROOT_RETIRED: _NEW_BUNDLE,
    Reason.UNAUTHENTICATED: _NEW_BUNDLE,
    Reason.TOO_MANY_ENROLMENTS: "try again in a minute; a running agent retries by itself",
    Reason.SERVER_STOPPING: "wait until the server is back; a running agent retries by itself",
}


@dataclass(frozen=True, slots=True)
class Renewed:
    """A new bundle, and the server that issued its certificate."""

    bundle: Bundle
    server: str


async def renew(installation: Installation) -> Renewed:
    """Renew at the first server that answers, and store the bundle.

    Raises ``CheckFailed``, or ``Refused`` for a permanent refusal. Cancelled, it leaves the old bundle.
    """
    with held(place_of_bundle(installation.bundle_file).parent):
        bundle = load_bundle(installation.file, installation.bundle_file)
        prove_place(installation.bundle_file)  # or the server issues certificates that cannot be saved
        if not bundle.https:
            raise CheckFailed(f"{installation.bundle_file} names no server to renew at", _NEW_BUNDLE)
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
    timeout_seconds = installation.config.session.connect_timeout_seconds
    file = installation.bundle_file
    path = ServerPath(https_port(server), installation.node, installation.proxy, timeout_seconds, file)
    for _, step in path.steps():
        await step()
    request = make_request(bundle.identity)
    try:
        certificates = await est_client.cacerts(path, verifying_context(bundle.roots_pem))
        with_leaf = verifying_context(bundle.roots_pem, client_file=file)
        leaf = await retry_while_busy(lambda: est_client.renew(path, with_leaf, request.body))
    except est_client.ServerRefused as refused:
        if refused.reason in (Reason.REVOKED, Reason.WRONG_TRUST_DOMAIN, Reason.WRONG_ROLE):
            raise
        fix = _FIXES.get(refused.reason, "see the server's log")
        raise CheckFailed(f"{server}: {refused}", fix, refused.reason.word) from None
    return _next_bundle(bundle, request, leaf, certificates)


def _next_bundle(bundle: Bundle, request: NewRequest, leaf: bytes, certificates: Sequence[bytes]) -> Bundle:
    """Return the new bundle with the server's present roots, so that a new root arrives before its use."""
    try:
        roots = roots_among(certificates)
        chain = chain_for(request.key_pem, [*split_pem(leaf), *certificates])
        identity = facts_of(chain).identity
        is_rooted = any(is_signed_by(split_pem(chain), root) for root in roots)
    except ValueError as error:
        raise CheckFailed(f"the new certificate cannot be used: {error}", "see the server's log") from None
    if identity != bundle.identity or not is_rooted:
        detail = f"the new certificate is of {identity}, or no root of this server signed it"
        raise Refused(Reason.BAD_CSR, detail)
    return replace(bundle, key_pem=request.key_pem, chain_pem=chain, roots_pem=b"".join(roots))
