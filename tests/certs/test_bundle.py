"""Bundle files: a written bundle is read back; any other content is refused with a sentence."""

from __future__ import annotations

import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.bundle import (
    Bundle,
    BundleError,
    format_bundle,
    parse_bundle,
    read_bundle,
    split_pem,
    write_bundle,
)
from certs.ca import create_authority
from tunnel_core.identity import Role, SpiffeId


def make_bundle() -> Bundle:
    leaf = create_authority("d.example").authority.issue(Role.NODE, "edge1")
    return Bundle(
        identity=SpiffeId("d.example", Role.NODE, "edge1"),
        key_pem=leaf.credential.key_pem,
        chain_pem=leaf.chain_pem,
        roots_pem=leaf.roots_pem,
        agents=("tunnel.example.com:7001", "[2001:db8::1]:7001"),
        https=("tunnel.example.com:7002",),
    )


BUNDLE = make_bundle()
TEXT = format_bundle(BUNDLE)


def test_a_written_bundle_reads_back_the_same(tmp_path: Path) -> None:
    write_bundle(tmp_path / "node.pem", BUNDLE)
    assert read_bundle(tmp_path / "node.pem") == BUNDLE
    assert (tmp_path / "node.pem").stat().st_mode & 0o777 == 0o600


def test_addresses_may_be_absent_and_roots_may_be_two() -> None:
    other = create_authority("d.example").authority.roots_pem
    bundle = replace(BUNDLE, agents=(), https=(), roots_pem=BUNDLE.roots_pem + other)
    assert parse_bundle(format_bundle(bundle)) == bundle


def test_line_ends_of_another_system_are_read() -> None:
    assert parse_bundle(TEXT.replace(b"\n", b"\r\n")) == BUNDLE


def test_openssl_loads_the_file_as_key_and_chain_and_trust(tmp_path: Path) -> None:
    path = tmp_path / "node.pem"
    write_bundle(path, BUNDLE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(path)
    context.load_verify_locations(path)
    assert len(context.get_ca_certs()) == 2


def test_the_key_of_a_bundle_is_never_shown() -> None:
    assert "PRIVATE" not in repr(BUNDLE)


@pytest.mark.parametrize("mode", [0o604, 0o647, 0o666, 0o644])
def test_a_file_that_others_can_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my node.pem"
    write_bundle(path, BUNDLE)
    path.chmod(mode)
    with pytest.raises(BundleError, match=r"can be read by others; run: chmod 600 '.*/my node\.pem'"):
        read_bundle(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no bundle at .*/none\.pem"):
        read_bundle(tmp_path / "none.pem")
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"Qanat-Bundle: 1", b"Qanat-Bundle: 2", "version is '2'"),
        (b"Qanat-Bundle: 1\n", b"", "'Qanat-Bundle:' is missing"),
        (b"Agents:", b"Agentz:", "does not belong there"),
        (b"Agents:", b"Https: a:1\nAgents:", "two lines 'Https'"),
        (b"Roots: 1", b"Roots: 3", "does not match its 3 certificates"),
        (b"Roots: 1", b"Roots: 0", "does not match"),
        (b"Roots: 1", b"Roots: -1", "does not match"),
        (b"node/edge1", b"node/EDGE1", "not a node name"),
        (b"Agents: tunnel.example.com:7001", b"Agents: tunnel.example.com", "no port"),
        (b"BEGIN PRIVATE", b"BEGIN ENCRYPTED PRIVATE", "damaged"),
        (b" PRIVATE KEY", b" ENCRYPTED PRIVATE KEY", "key is encrypted"),
        (b" PRIVATE KEY", b" CERTIFICATE", "first PEM block is not a private key"),
        (b"-----BEGIN CERTIFICATE", b"note\n-----BEGIN CERTIFICATE", "other text"),
        (b"-----END CERTIFICATE-----", b"", "damaged"),
        (b"Identity", b"Identit\xc3\xa4t", "not plain text"),
    ],
)
def test_parts_that_do_not_match_are_refused(old: bytes, new: bytes, sentence: str) -> None:
    assert old in TEXT
    with pytest.raises(ValueError, match=sentence):
        parse_bundle(TEXT.replace(old, new))


def test_two_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="other than one key and certificates"):
        parse_bundle(TEXT + BUNDLE.key_pem)


def test_endless_blocks_are_refused_early() -> None:
    with pytest.raises(ValueError, match="more than 32"):
        split_pem(BUNDLE.roots_pem * 40)


def test_split_pem_takes_certificates_only() -> None:
    assert b"".join(split_pem(BUNDLE.chain_pem)) == BUNDLE.chain_pem
    assert split_pem(b"") == []
    with pytest.raises(ValueError, match="other than certificates"):
        split_pem(BUNDLE.key_pem)


@given(st.data())
def test_a_damaged_bundle_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TEXT)))
    end = data.draw(st.integers(start, min(len(TEXT), start + 40)))
    text = TEXT[:start] + data.draw(st.binary(max_size=20)) + TEXT[end:]
    try:
        parse_bundle(text)
    except ValueError as error:
        assert len(str(error)) < 500


def test_reading_a_bundle_costs_no_x509_parser() -> None:
    code = "import sys, certs.bundle; sys.exit(any(name.startswith('cryptography') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603
