"""Certificate requests of nodes and of other clients, and requests that are refused."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs.ca import BACK_DATED, Authority, AuthorityError, create_authority
from certs.requests import MAX_REQUEST_BYTES, CertificateRequest, make_request, read_request, require_names
from certs.x509 import Credential, Usage, describe, key_fits, proven_leaf
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused

SHOP = SpiffeId("d.example", Role.NODE, "shop-7")
KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority("d.example").authority


def request(
    *extensions: x509.ExtensionType,
    key: Any = KEY,
    common_name: str = "",
    digest: hashes.HashAlgorithm | None = hashes.SHA256(),  # noqa: B008 - an immutable value
    critical: bool = False,
) -> bytes:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder(x509.Name(attributes))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def names(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def refusal(data: bytes, identity: SpiffeId = SHOP) -> tuple[Reason, str]:
    with pytest.raises(Refused) as caught:
        require_names(read_request(data), identity)
    return caught.value.reason, caught.value.detail


def test_the_server_reads_the_request_of_a_node() -> None:
    made = make_request(SHOP)
    read = read_request(made.request_der)
    assert (read.uris, read.common_names, read.dns_names) == ((str(SHOP),), ("node shop-7",), ())
    assert len(read.key_sha256) == 64
    require_names(read, SHOP)
    assert "PRIVATE" not in repr(made)


def as_pem(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\r\n" + body + b"-----END CERTIFICATE REQUEST-----\r\n"


@pytest.mark.parametrize(
    "wrapped", [bytes, base64.b64encode, base64.encodebytes, as_pem, lambda der: b"\n" + as_pem(der) + b"\n"]
)
def test_der_pem_and_the_base64_of_est_are_the_same(wrapped: Callable[[bytes], bytes]) -> None:
    der = make_request(SHOP).request_der
    assert read_request(wrapped(der)) == read_request(der)


@pytest.mark.parametrize(
    "data",
    [
        request(),
        request(common_name="shop-7"),
        request(common_name="node shop-7"),
        request(names(x509.DNSName("shop-7"))),
        request(names(x509.DNSName("SHOP-7"), uri(str(SHOP))), common_name="shop-7"),
        request(x509.BasicConstraints(ca=False, path_length=None)),
        request(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])),
        request(key=ec.generate_private_key(ec.SECP384R1())),
        request(key=RSA_KEY, digest=hashes.SHA512()),
    ],
)
def test_requests_of_standard_clients_are_enough(data: bytes) -> None:
    require_names(read_request(data), SHOP)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (request(common_name="shop-8"), "names 'shop-8'"),
        (request(common_name="server shop-7"), "names 'server shop-7'"),
        (request(names(uri("spiffe://d.example/node/shop-8"))), "names 'spiffe://d.example/node/shop-8'"),
        (request(names(uri("spiffe://other/node/shop-7"))), "this is for spiffe://d.example/node/shop-7"),
        (request(names(uri(str(SHOP)), uri("spiffe://d.example/user/root"))), "names 'spiffe"),
        (request(names(x509.DNSName("shop-7"), x509.DNSName("tunnel.example.com"))), "names 'tunnel."),
    ],
)
def test_another_name_is_refused(data: bytes, sentence: str) -> None:
    reason, detail = refusal(data)
    assert reason is Reason.CSR_NAME_MISMATCH
    assert sentence in detail


def key_usage(**wanted: bool) -> x509.KeyUsage:
    every = "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
    every += " key_cert_sign crl_sign encipher_only decipher_only"
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in every.split()})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (request(x509.BasicConstraints(ca=True, path_length=None)), "CA:TRUE"),
        (request(key_usage(key_cert_sign=True)), "signs certificates"),
        (request(names(x509.IPAddress(ipaddress.ip_address("10.0.0.1")))), "other than a URI or a DNS name"),
        (request(names(x509.RFC822Name("a@example.com"))), "other than a URI or a DNS name"),
        (
            request(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), critical=True),
            "1.2.3.4",
        ),
        (b"", "cannot be read"),
        (b"\x30\x03\x02\x01\x01", "cannot be read"),
        (b"0" * 100, "cannot be read"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n!!!!\n-----END CERTIFICATE REQUEST-----", "nor base64"),
        (b"A" * (MAX_REQUEST_BYTES + 1), "larger than 16 KiB"),
        (request() + b"\x00", "cannot be read"),
    ],
)
def test_a_request_for_more_or_an_invalid_one_is_refused(data: bytes, sentence: str) -> None:
    reason, detail = refusal(data)
    assert reason is Reason.BAD_CSR
    assert sentence in detail


def test_a_request_that_was_changed_is_not_signed_with_its_own_key() -> None:
    der = request(common_name="shop-8")
    changed = der.replace(b"shop-8", b"shop-7")
    assert changed != der
    assert refusal(changed) == (Reason.BAD_CSR, "the certificate request is not signed with its own key")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (request(key=ec.generate_private_key(ec.SECP521R1())), "secp521r1"),
        (request(key=ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
        (request(key=rsa.generate_private_key(65537, 1024)), "RSA key of 1024 bits"),  # noqa: S505
        (request(key=rsa.generate_private_key(3, 2048)), "exponent"),
        (request(key=ed25519.Ed25519PrivateKey.generate(), digest=None), "keys of this kind"),
    ],
)
def test_weak_and_strange_keys_are_refused(data: bytes, sentence: str) -> None:
    reason, detail = refusal(data)
    assert reason is Reason.WEAK_KEY
    assert sentence in detail


def test_sha1_is_refused(tmp_path: Path) -> None:
    openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-sha1", *subject_and_files(tmp_path))
    assert refusal((tmp_path / "r.pem").read_bytes())[0] is Reason.WEAK_KEY


def openssl(*arguments: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl: apt-get install openssl")
    ran = subprocess.run([program, *arguments], capture_output=True, text=True)  # noqa: S603
    assert ran.returncode == 0, ran.stderr


def subject_and_files(folder: Path) -> list[str]:
    return ["-subj", "/CN=shop-7", "-keyout", str(folder / "k.pem"), "-out", str(folder / "r.pem")]


@pytest.mark.parametrize("kind", ["rsa:3072", "ec -pkeyopt ec_paramgen_curve:P-256"])
def test_a_request_made_by_openssl_gets_a_certificate(
    tmp_path: Path, authority: Authority, kind: str
) -> None:
    openssl("req", "-new", "-newkey", *kind.split(), "-nodes", *subject_and_files(tmp_path))
    certified = authority.certify(read_request((tmp_path / "r.pem").read_bytes()), SHOP)
    (tmp_path / "leaf.pem").write_bytes(certified.chain_pem)
    (tmp_path / "roots.pem").write_bytes(certified.roots_pem)
    (tmp_path / "issuing.pem").write_bytes(authority.issuing.certificate_pem)
    files = ("-CAfile", str(tmp_path / "roots.pem"), "-untrusted", str(tmp_path / "issuing.pem"))
    openssl("verify", "-purpose", "sslclient", "-x509_strict", *files, str(tmp_path / "leaf.pem"))


@given(st.binary(max_size=600))
def test_garbage_is_refused_and_raises_nothing_else(data: bytes) -> None:
    assert refusal(data)[0] in (Reason.BAD_CSR, Reason.WEAK_KEY)


_DER = make_request(SHOP).request_der


@given(st.integers(0, len(_DER) - 1), st.integers(1, 255), st.booleans())
def test_a_request_with_one_byte_changed_is_refused_or_means_the_same(
    place: int, change: int, as_base64: bool
) -> None:
    """Another valid count of unused bits in the signature's BIT STRING leaves the meaning the same."""
    changed = bytearray(_DER)
    changed[place] ^= change
    data = base64.encodebytes(bytes(changed)) if as_base64 else bytes(changed)
    try:
        read_again = read_request(data)
        require_names(read_again, SHOP)
    except Refused as refused:
        assert refused.reason in (Reason.BAD_CSR, Reason.WEAK_KEY)
    else:
        assert read_again == read_request(_DER)


# Certificates for requests.


def read() -> tuple[CertificateRequest, bytes]:
    made = make_request(SHOP)
    return read_request(made.request_der), made.key_pem


def test_a_leaf_of_a_minute_is_back_dated_and_fits_the_key(authority: Authority) -> None:
    asked, key_pem = read()
    now = datetime.datetime(2027, 1, 1, 12, tzinfo=datetime.UTC)
    made = authority.certify(asked, SHOP, life_seconds=60, now=now)
    assert (made.facts.begins, made.facts.ends) == (now - BACK_DATED, now + datetime.timedelta(minutes=1))
    assert made.facts.identity == proven_leaf(made.chain_pem, usage=Usage.CLIENT).identity == SHOP
    assert made.facts.serial == describe(made.chain_pem).serial
    assert made.facts.key_sha256 == asked.key_sha256
    assert key_fits(Credential(made.chain_pem, key_pem))
    assert made.root_pin == authority.root_pin


def test_the_content_of_a_leaf_does_not_depend_on_the_request(authority: Authority) -> None:
    asked = read_request(request(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])))
    loaded = x509.load_pem_x509_certificate(authority.certify(asked, SHOP).chain_pem)
    usages = loaded.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    alternative = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(alternative) == [uri(str(SHOP))]


def test_near_the_end_of_the_issuing_certificate_leaves_get_shorter(authority: Authority) -> None:
    ends = describe(authority.issuing.certificate_pem).ends
    now = ends - datetime.timedelta(days=3)
    assert authority.certify(read()[0], SHOP, now=now).facts.ends == ends
    with pytest.raises(AuthorityError, match="ca rotate issuing"):
        authority.certify(read()[0], SHOP, now=ends)


def test_another_identity_gets_no_certificate(authority: Authority) -> None:
    asked = read_request(request(common_name="shop-8"))
    with pytest.raises(Refused) as caught:
        authority.certify(asked, SHOP)
    assert caught.value.reason is Reason.CSR_NAME_MISMATCH
    with pytest.raises(ValueError, match="not of the trust domain"):
        authority.certify(read()[0], SpiffeId("other", Role.NODE, "shop-7"))
