"""The validity of certificates, read without the library and compared with what the library reads."""

from __future__ import annotations

import datetime
import ssl
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from certs.ca import create_authority
from certs.validity import ValidityPeriod, validity_of
from certs.x509 import describe
from tests.support.pki import authority as pki
from tunnel_core.identity import Role

NOW = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
dates = st.timedeltas(datetime.timedelta(), datetime.timedelta(days=365 * 140)).map(
    lambda after: datetime.datetime(1951, 1, 1, tzinfo=datetime.UTC) + after
)


@given(dates, st.integers(1, 3000))
def test_the_dates_are_those_that_the_library_reads(now: datetime.datetime, days: int) -> None:
    authority = create_authority("test.internal", now=now).authority
    chain = authority.issue(Role.NODE, "edge1", days=min(days, 1800), now=now).chain_pem
    description = describe(chain)
    assert validity_of(chain) == ValidityPeriod(description.serial, description.begins, description.ends)


@given(st.data())
def test_a_damaged_certificate_is_read_or_refused(data: st.DataObject) -> None:
    der = bytearray(
        x509.load_pem_x509_certificate(pki.node_leaf("edge1").chain_pem).public_bytes(Encoding.DER)
    )
    for _ in range(data.draw(st.integers(0, 3))):
        der[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(der)))
    try:
        validity_of(ssl.DER_cert_to_PEM_cert(bytes(der[:cut])).encode())
    except ValueError:
        return


@pytest.mark.parametrize("text", [b"", b"-----BEGIN CERTIFICATE-----\nAA=A\n-----END CERTIFICATE-----\n"])
def test_text_that_is_no_certificate_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        validity_of(text)


@pytest.mark.parametrize("seconds", [60.0, 3600.0, 30 * 86400.0])
def test_a_back_dated_certificate_is_renewed_at_two_thirds_of_the_rest(seconds: float) -> None:
    leaf = pki.authority().issue(Role.NODE, "edge1", days=seconds / 86400, now=NOW)
    validity = validity_of(leaf.chain_pem)
    assert validity.issued == NOW
    assert validity.seconds() == seconds
    at = [(validity.renewal(chance) - NOW).total_seconds() / seconds for chance in (0.0, 0.5, 1.0)]
    assert at == pytest.approx([0.6, 2 / 3, 11 / 15])


def test_a_certificate_that_was_not_back_dated_is_renewed_at_two_thirds() -> None:
    life = ValidityPeriod("1", NOW, NOW + datetime.timedelta(seconds=90))
    assert life.renewal(0.5) == NOW + datetime.timedelta(seconds=60)


def test_reading_dates_loads_no_library() -> None:
    program = "import sys, certs.validity; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0  # noqa: S603
