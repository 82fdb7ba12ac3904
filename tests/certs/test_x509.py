"""The content of certificates, and which certificates prove an identity in which role."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs.bundle import split_pem
from certs.ca import Authority, create_authority
from certs.x509 import (
    Credential,
    IdentityError,
    Usage,
    describe,
    facts_of,
    is_signed_by,
    key_fits,
    pin_of,
    proven_leaf,
)
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason

DOMAIN = "tunnel.example.com"
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority(DOMAIN).authority


def foreign_leaf(
    uris: Sequence[str],
    *,
    usages: Sequence[x509.ObjectIdentifier] = (CLIENT,),
    is_authority: bool | None = False,
) -> bytes:
    """Return a self-signed leaf as another issuer might make it, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "elsewhere")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if uris:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(san, critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if is_authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def refusal(leaf: bytes, **wanted: object) -> Reason:
    with pytest.raises(IdentityError) as caught:
        proven_leaf(leaf, **{"usage": Usage.CLIENT, **wanted})  # type: ignore[arg-type]
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize(
    ("role", "name", "usage"),
    [
        (Role.NODE, "edge1.shop.example", Usage.CLIENT),
        (Role.USER, "kim@example.com", Usage.CLIENT),
        (Role.SERVER, "main", Usage.SERVER),
    ],
)
def test_an_issued_leaf_proves_its_identity_as_pem_and_as_der(
    authority: Authority, role: Role, name: str, usage: Usage
) -> None:
    pem = authority.issue(role, name).credential.certificate_pem
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    for leaf in (pem, der, b"\n" + pem):
        found = proven_leaf(leaf, usage=usage, role=role, trust_domain=DOMAIN).identity
        assert found == SpiffeId(DOMAIN, role, name)


def test_each_condition_that_a_leaf_does_not_meet_has_its_reason(authority: Authority) -> None:
    node = authority.issue(Role.NODE, "edge1").credential.certificate_pem
    server = authority.issue(Role.SERVER, "main").credential.certificate_pem
    assert refusal(node, role=Role.USER) is Reason.WRONG_ROLE
    assert refusal(node, usage=Usage.SERVER) is Reason.WRONG_ROLE
    assert refusal(server) is Reason.WRONG_ROLE
    assert refusal(node, trust_domain="other.example") is Reason.WRONG_TRUST_DOMAIN
    assert refusal(authority.issuing.certificate_pem) is Reason.UNAUTHENTICATED
    assert refusal(authority.roots_pem) is Reason.UNAUTHENTICATED


def test_leaves_of_other_issuers_work_if_uri_and_usage_are_right() -> None:
    leaf = foreign_leaf([f"spiffe://{DOMAIN}/node/edge1"], usages=[SERVER, CLIENT], is_authority=None)
    assert proven_leaf(leaf, usage=Usage.CLIENT).identity.name == "edge1"
    assert proven_leaf(leaf, usage=Usage.SERVER).identity.name == "edge1"
    assert refusal(foreign_leaf([f"spiffe://{DOMAIN}/node/edge1"], usages=[])) is Reason.WRONG_ROLE


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://d/node/a", "spiffe://d/node/b"],
        ["spiffe://d/node/a", "https://example.com"],
        ["https://d/node/a"],
        ["spiffe://d/node/a/b"],
        ["spiffe://d/node/"],
        ["spiffe://d/node"],
        ["spiffe://d/admin/a"],
        ["spiffe://D/node/a"],
        ["spiffe://d/node/A"],
        ["spiffe://d/Node/a"],
        ["spiffe://d/node/.."],
        ["spiffe://d/user/a/../../node/b"],
        ["spiffe://d/node/%2e%2e"],
        ["spiffe://d/node/a%00"],
        ["spiffe://d/node/a\0"],
        ["spiffe://d/node/a\n"],
        ["spiffe://d/node/a?x=1"],
        ["spiffe://d/node/a#x"],
        ["spiffe://user@d/node/a"],
        ["spiffe://d:443/node/a"],
        ["spiffe://d/node/" + "a" * 300],
        ["spiffe:///node/a"],
        [""],
    ],
)
def test_other_uris_prove_nothing(uris: list[str]) -> None:
    assert refusal(foreign_leaf(uris)) is Reason.UNAUTHENTICATED


def test_an_authority_with_a_perfect_uri_is_no_leaf() -> None:
    leaf = foreign_leaf([f"spiffe://{DOMAIN}/node/edge1"], is_authority=True)
    assert refusal(leaf) is Reason.UNAUTHENTICATED


@given(st.binary(max_size=200) | st.binary(max_size=200).map(b"-----BEGIN CERTIFICATE-----\n".__add__))
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    assert refusal(data) is Reason.UNAUTHENTICATED


@pytest.mark.filterwarnings("ignore:Parsed a:cryptography.utils.CryptographyDeprecationWarning")
@given(st.data())
def test_a_damaged_certificate_is_refused_or_means_the_same(data: st.DataObject) -> None:
    der = bytearray(DAMAGEABLE)
    position = data.draw(st.integers(0, len(der) - 1))
    der[position] = data.draw(st.integers(0, 255))
    try:
        proven_leaf(bytes(der), usage=Usage.CLIENT)
    except IdentityError as error:
        assert error.reason in {Reason.UNAUTHENTICATED, Reason.WRONG_ROLE}


DAMAGEABLE = ssl.PEM_cert_to_DER_cert(foreign_leaf(["spiffe://d/node/a"]).decode())


def test_the_chain_conforms_to_rfc_5280(authority: Authority) -> None:
    leaf = authority.issue(Role.SERVER, "main", names=["tunnel.example.com", "2001:db8::1"])
    root, issuing, server = (
        x509.load_pem_x509_certificate(pem)
        for pem in (
            authority.roots_pem,
            authority.issuing.certificate_pem,
            leaf.credential.certificate_pem,
        )
    )
    issuing.verify_directly_issued_by(root)
    server.verify_directly_issued_by(issuing)
    assert [path_length(one) for one in (root, issuing)] == [1, 0]
    for one in (root, issuing, server):
        for oid in (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE):
            assert one.extensions.get_extension_for_oid(oid).critical
        assert one.serial_number.bit_length() <= 159
        assert isinstance(one.public_key(), ec.EllipticCurvePublicKey)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [
        x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/server/main"),
        x509.DNSName("tunnel.example.com"),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
    ]
    assert list(server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [SERVER]


def path_length(certificate: x509.Certificate) -> int | None:
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca
    return constraints.path_length


def test_a_name_longer_than_a_common_name_may_be_is_whole_in_the_identity(authority: Authority) -> None:
    name = ".".join(["a" * 60] * 4)
    leaf = authority.issue(Role.NODE, name).credential.certificate_pem
    assert proven_leaf(leaf, usage=Usage.CLIENT).identity.name == name
    assert len(describe(leaf).subject) == 64


def test_a_description_has_what_people_ask_for(authority: Authority) -> None:
    now = datetime.datetime(2030, 1, 1, 12, tzinfo=datetime.UTC)
    leaf = authority.issue(Role.SERVER, "main", names=["::1", "localhost"], days=10, now=now)
    description = describe(leaf.chain_pem)
    assert description.subject == "server main"
    assert description.issuer == describe(authority.issuing.certificate_pem).subject
    assert description.begins == datetime.datetime(2030, 1, 1, 11, tzinfo=datetime.UTC)
    assert description.ends == datetime.datetime(2030, 1, 11, 12, tzinfo=datetime.UTC)
    assert description.names == ("::1", "localhost")
    assert description.uris == (f"spiffe://{DOMAIN}/server/main",)
    assert not description.is_authority and describe(authority.roots_pem).is_authority


def test_a_nameless_certificate_can_be_described() -> None:
    description = describe(foreign_leaf([]))
    assert (description.subject, description.uris, description.names) == ("O=elsewhere", (), ())


def test_a_key_fits_its_own_certificate_only(authority: Authority) -> None:
    one, other = (authority.issue(Role.NODE, name).credential for name in ("a", "b"))
    assert key_fits(one)
    assert not key_fits(replace(one, key_pem=other.key_pem))
    with pytest.raises(ValueError, match="PEM"):
        key_fits(Credential(one.certificate_pem, b"nothing"))


def test_a_key_is_never_shown(authority: Authority) -> None:
    leaf = authority.issue(Role.NODE, "a")
    assert "PRIVATE" not in repr(leaf)
    assert "PRIVATE" not in repr(authority)


# Facts, pins, chains.


def test_facts_are_those_of_the_certificate(authority: Authority) -> None:
    leaf = authority.issue(Role.NODE, "edge1")
    facts, description = facts_of(leaf.chain_pem), describe(leaf.chain_pem)
    assert (facts.serial, facts.begins, facts.ends) == (
        description.serial,
        description.begins,
        description.ends,
    )
    assert facts.identity == SpiffeId(DOMAIN, Role.NODE, "edge1")
    assert facts.key_sha256 == pin_of(leaf.chain_pem).hex()
    for other in (b"", foreign_leaf([]), authority.roots_pem):
        with pytest.raises(ValueError, match="cannot be read, or names no identity"):
            facts_of(other)


def test_a_pin_is_of_the_key_as_openssl_counts_it(authority: Authority) -> None:
    root = x509.load_pem_x509_certificate(authority.roots_pem)
    key = root.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert pin_of(authority.roots_pem) == authority.root_pin == hashlib.sha256(key).digest()


def test_a_chain_leads_to_its_own_root_alone(authority: Authority) -> None:
    other = create_authority(DOMAIN).authority
    chain = split_pem(authority.issue(Role.NODE, "edge1").chain_pem)
    assert is_signed_by(chain, authority.roots_pem)
    assert not is_signed_by(chain, other.roots_pem)
    assert not is_signed_by(chain[::-1], authority.roots_pem)
    assert not is_signed_by(chain[:1], authority.roots_pem)


# A stranger's certificate may be well-formed and still not readable for the library.


def test_an_odd_name_is_a_value_error_and_nothing_else() -> None:
    pem = foreign_leaf(["spiffe://elsewhere/node/edge1"])
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    odd = der.replace(b"\x0c\x09elsewhere", b"\x03\x09\x00lsewhere")
    assert odd != der
    with pytest.raises(ValueError, match="cannot be read"):
        describe(odd)
    assert not is_signed_by([odd], pem)
    assert proven_leaf(odd, usage=Usage.CLIENT).identity.name == "edge1"
