"""Use the token: send the request until the server answers, and make a bundle of the answer."""

from __future__ import annotations

from certs.bundle import Bundle, split_pem
from certs.pkcs7 import chain_for
from certs.requests import NewRequest
from certs.x509 import facts_of, is_signed_by
from tunnel_agent.certificate.est_client import ServerRefused, enrol
from tunnel_agent.certificate.retry import retry_while_busy
from tunnel_agent.checks import CheckFailed
from tunnel_agent.join.first_contact import Contact
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason

_ASK_AGAIN = "ask for a new token: `qanat-server token create --node {node}`"
_FIXES = {
    Reason.TOKEN_WRONG: "paste the whole output of `qanat-server token create` on this server",
    Reason.TOKEN_EXPIRED: _ASK_AGAIN,
    Reason.TOKEN_USED_UP: _ASK_AGAIN,
    Reason.TOKEN_REVOKED: _ASK_AGAIN,
    Reason.TOKEN_REPLAYED: _ASK_AGAIN,
    Reason.REVOKED: _ASK_AGAIN,
    Reason.TOKEN_NAME_MISMATCH: "join under the token's name (--name), or " + _ASK_AGAIN,
}


def identity_at(trust_domain: str, node: str) -> SpiffeId:
    """Return the identity of ``node``. Raises ``CheckFailed`` for a trust domain that is not valid."""
    try:
        return SpiffeId(trust_domain, Role.NODE, node)
    except ValueError as error:
        raise CheckFailed(
            f"the server's trust domain cannot be used: {error}", "see its server.toml"
        ) from None


async def spend_token(contact: Contact, node: str, request: NewRequest) -> bytes:
    """Get the certificate (PEM). Repeated requests count as one use of the token. Raises ``CheckFailed``."""
    try:
        return await retry_while_busy(
            lambda: enrol(contact.https_path, contact.context, node, contact.token, request.body)
        )
    except ServerRefused as refused:
        fix = _FIXES.get(refused.reason, f"see {refused.reason.word} in docs/errors.md")
        raise CheckFailed(str(refused), fix.format(node=node), refused.reason.word) from None


def bundle_of(contact: Contact, request: NewRequest, leaf: bytes, identity: SpiffeId) -> Bundle:
    """Return the node's bundle. Raises ``CheckFailed`` for a certificate that does not match ``request``."""
    hint = "nothing was changed here; see the server's log"
    try:
        chain = chain_for(request.key_pem, [*split_pem(leaf), *contact.certificates])
        issued_to = facts_of(chain).identity
        is_rooted = any(is_signed_by(split_pem(chain), root) for root in contact.roots)
    except ValueError as error:
        raise CheckFailed(f"the new certificate cannot be used: {error}", hint) from None
    if issued_to != identity or not is_rooted:
        detail = f"the new certificate is of {issued_to}, or no root of this server signed it"
        raise CheckFailed(detail, hint)
    return Bundle(identity, request.key_pem, chain, b"".join(contact.roots), contact.agents, contact.https)
