"""The certificates of an EST answer, there and back."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.bundle import split_pem
from certs.ca import create_authority
from certs.pkcs7 import certs_only, chain_for, read_certs_only
from certs.requests import make_request, read_request
from tunnel_core.identity import Role, SpiffeId

SHOP = SpiffeId("d.example", Role.NODE, "shop-7")
AUTHORITY = create_authority("d.example").authority


def test_a_chain_is_read_in_order_whatever_the_order_of_the_set() -> None:
    made = make_request(SHOP)
    certified = AUTHORITY.certify(read_request(made.request_der), SHOP)
    others = create_authority("d.example").authority
    sent = certified.chain_pem + certified.roots_pem + others.issuing.certificate_pem
    for found in (read_certs_only(certs_only(sent)), split_pem(sent)[::-1]):
        assert sorted(found) == sorted(split_pem(sent))
        assert chain_for(made.key_pem, found) == certified.chain_pem


def test_an_answer_for_another_key_is_refused() -> None:
    certified = AUTHORITY.certify(read_request(make_request(SHOP).request_der), SHOP)
    with pytest.raises(ValueError, match="of the key that was sent"):
        chain_for(make_request(SHOP).key_pem, split_pem(certified.chain_pem))


def test_openssl_reads_our_answers_and_we_read_those_of_openssl(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl: apt-get install openssl")
    (tmp_path / "a.p7").write_bytes(base64.b64decode(certs_only(AUTHORITY.roots_pem)))
    (tmp_path / "roots.pem").write_bytes(AUTHORITY.roots_pem)
    read = [openssl, "pkcs7", "-inform", "DER", "-in", str(tmp_path / "a.p7"), "-print_certs"]
    assert AUTHORITY.roots_pem.strip() in subprocess.run(read, capture_output=True, check=True).stdout  # noqa: S603
    write = [openssl, "crl2pkcs7", "-nocrl", "-certfile", str(tmp_path / "roots.pem"), "-outform", "DER"]
    made = subprocess.run(write, capture_output=True, check=True).stdout  # noqa: S603
    assert read_certs_only(base64.encodebytes(made)) == [AUTHORITY.roots_pem]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"!", "not base64"), (b"AAAA", "no readable"), (b"A" * 200_000, "larger than"), (b"", "no readable")],
)
def test_a_text_that_is_no_answer_is_refused_with_the_cause(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_certs_only(data)


@given(st.binary(max_size=300))
def test_garbage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        read_certs_only(base64.b64encode(data))


def test_a_certificate_of_an_unknown_version_is_a_value_error() -> None:
    der = base64.b64decode(certs_only(AUTHORITY.roots_pem))
    version = b"\xa0\x03\x02\x01"
    assert version + b"\x02" in der
    with pytest.raises(ValueError, match="no readable certificates"):
        read_certs_only(base64.b64encode(der.replace(version + b"\x02", version + b"\x01")))
