"""The token is spent: the request is sent until there is an answer, and the answer becomes a bundle."""

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

_ANEW = "ask for a new token: `qanat-server token create --node {node}`"
_FIXES = {
    Reason.TOKEN_WRONG: "paste all of what `qanat-server token create` printed on this server",
    Reason.TOKEN_EXPIRED: _ANEW,
    Reason.TOKEN_USED_UP: _ANEW,
    Reason.TOKEN_REVOKED: _ANEW,
    Reason.TOKEN_REPLAYED: _ANEW,
    Reason.REVOKED: _ANEW,
    Reason.TOKEN_NAME_MISMATCH: "join under the name it is for (--name), or " + _ANEW,
}


def identity_at(trust_domain: str, node: str) -> SpiffeId:
    try:
        return SpiffeId(trust_domain, Role.NODE, node)
    except ValueError as error:
        raise CheckFailed(
            f"the server's trust domain cannot be used: {error}", "see its server.toml"
        ) from None


async def spend_token(contact: Contact, node: str, request: NewRequest) -> bytes:
    """The certificate (PEM). However often it is asked for, it is one use. Raises ``CheckFailed``."""
    try:
        return await retry_while_busy(
            lambda: enrol(contact.way, contact.context, node, contact.token, request.body)
        )
    except ServerRefused as refused:
        fix = _FIXES.get(refused.reason, f"see {refused.reason.word} in docs/errors.md")
        raise CheckFailed(str(refused), fix.format(node=node), refused.reason.word) from None


def bundle_of(contact: Contact, request: NewRequest, leaf: bytes, identity: SpiffeId) -> Bundle:
    """Raises ``CheckFailed`` for a certificate that is not what was asked for."""
    hint = "nothing was changed here; the server's log may say more"
    try:
        chain = chain_for(request.key_pem, [*split_pem(leaf), *contact.certificates])
        given = facts_of(chain).identity
        leads = any(is_signed_by(split_pem(chain), root) for root in contact.roots)
    except ValueError as error:
        raise CheckFailed(f"the certificate that came cannot be used: {error}", hint) from None
    if given != identity or not leads:
        raise CheckFailed(f"the certificate that came is of {given}, or of no root of this server", hint)
    return Bundle(identity, request.key_pem, chain, b"".join(contact.roots), contact.agents, contact.https)
