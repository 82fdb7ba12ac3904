"""The validity of renewals, over EST, and the server's cost of a used token."""

from __future__ import annotations

from pathlib import Path

import pytest

from certs.ca import Leaf
from certs.pkcs7 import read_certs_only
from certs.requests import CertificateRequest
from certs.x509 import Credential, describe, facts_of
from tests.server.entrances.test_est import enrol, identity, renew, request_of
from tests.support.fakes.opened_store import PIN
from tests.support.pki import authority as pki
from tests.support.pki.issuing import Issuing, open_issuing
from tunnel_core.identity import Role, SpiffeId
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.pki.enrolment.signer import Signed, Signer
from tunnel_server.store.certificates import by_hand

SHORT_DAYS = 600 / 86400
BACK_DATED_SECONDS = 3600.0


def validity_seconds(leaf: bytes) -> float:
    description = describe(leaf)
    return (description.ends - description.begins).total_seconds() - BACK_DATED_SECONDS


async def issued(issuing: Issuing, *, renewable: bool = False) -> Leaf:
    """A user's certificate of ten minutes, where the configuration gives half an hour."""
    leaf = pki.authority().issue(Role.USER, "kim", days=SHORT_DAYS)
    facts = facts_of(leaf.chain_pem)
    await issuing.store.record(by_hand(facts, PIN, "uid-0", renewable=renewable))
    return leaf


async def renewed(issuing: Issuing, leaf: Leaf) -> Leaf:
    """The renewal, with the key of ``leaf``."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from certs.requests import request_for

    key = load_pem_private_key(leaf.credential.key_pem, None)
    body = request_for(key, identity("kim", Role.USER)).body  # type: ignore[arg-type]
    answer = await renew(issuing, leaf, body)
    assert answer.status == 200, answer.body
    (pem,) = read_certs_only(answer.body)
    chain = pem + pki.authority().issuing.certificate_pem
    return Leaf(Credential(pem, leaf.credential.key_pem), chain, leaf.roots_pem)


async def test_renewals_of_a_short_validity_stay_short(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        leaf = await issued(issuing)
        for _ in range(3):
            leaf = await renewed(issuing, leaf)
            assert 590 < validity_seconds(leaf.chain_pem) <= 601
        chain = await issuing.store.certificates(name="kim")
        assert [one["renewed_from"] for one in chain] == [None, *(one["serial"] for one in chain[:-1])]


async def test_a_renewable_one_gets_what_the_configuration_gives(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        leaf = await renewed(issuing, await issued(issuing, renewable=True))
        assert 1790 < validity_seconds(leaf.chain_pem) <= 1801
        assert 1790 < validity_seconds((await renewed(issuing, leaf)).chain_pem) <= 1801


async def test_a_short_one_that_the_store_does_not_know_stays_short(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        leaf = await renewed(issuing, pki.authority().issue(Role.USER, "kim", days=SHORT_DAYS))
        assert 590 < validity_seconds(leaf.chain_pem) <= 601
        assert 590 < validity_seconds((await renewed(issuing, leaf)).chain_pem) <= 601


async def test_enrolled_certificates_are_renewed_for_the_configured_time(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        answer = await enrol(issuing, await issuing.token("edge1"), request_of())
        (pem,) = read_certs_only(answer.body)
        assert await issuing.store.renewal_seconds(facts_of(pem).serial, unknown=1.0) is None


async def test_a_revoked_certificate_takes_what_it_was_renewed_into_along(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        first = await issued(issuing)
        second = await renewed(issuing, first)
        await issuing.store.revoke(RevocationKind.SERIAL, facts_of(first.chain_pem).serial, "uid-0")
        answer = await renew(issuing, second, request_of("kim", Role.USER))
        assert (answer.status, answer.word) == (403, "revoked")


class CountingSigner(Signer):
    """Signer that counts its signatures."""

    signed = 0

    async def sign(self, request: CertificateRequest, identity: SpiffeId, life_seconds: float) -> Signed:
        self.signed += 1
        return await super().sign(request, identity, life_seconds)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("spent", "token_replayed"),
        ("revoked", "token_revoked"),
        ("expired", "token_expired"),
        ("another", "token_name_mismatch"),
        ("node", "revoked"),
    ],
)
async def test_a_token_that_does_not_hold_costs_no_signature(tmp_path: Path, state: str, word: str) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = await issuing.token("edge1", ttl=0 if state == "expired" else 3600)
        if state == "spent":
            assert (await enrol(issuing, token, request_of())).status == 200
        elif state == "revoked":
            await issuing.store.revoke_token(token.id, "test")
        elif state == "node":
            await issuing.store.revoke(RevocationKind.NODE, "edge1", "test")
        signer = CountingSigner(pki.authority())
        issuing.signers.append(signer)
        name = "edge2" if state == "another" else "edge1"
        answer = await enrol(issuing, token, request_of(name))
        assert (answer.status, answer.word) == (403, word)
        assert signer.signed == 0
        refused = [line for line in await issuing.audit() if line[0] == "refused"]
        assert refused == [("refused", word, name)]
