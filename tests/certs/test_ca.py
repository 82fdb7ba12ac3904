"""The authority on disk, what it refuses to issue, and whether OpenSSL agrees with its chains."""

from __future__ import annotations

import datetime
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from certs.authority_folder import load_authority, save_new
from certs.ca import (
    Authority,
    AuthorityError,
    canonical_name,
    create_authority,
    default_trust_domain,
)
from certs.x509 import describe
from tunnel_core.identity import Role


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority("d.example").authority


def test_a_saved_authority_loads_as_the_same(tmp_path: Path) -> None:
    new = create_authority("d.example")
    save_new(new, tmp_path / "deep" / "ca")
    assert load_authority(tmp_path / "deep" / "ca") == new.authority
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "deep" / "ca").iterdir()}
    assert modes == {
        "root.pem": 0o644,
        "root-key.pem": 0o600,
        "issuing.pem": 0o644,
        "issuing-key.pem": 0o600,
    }
    assert stat.S_IMODE((tmp_path / "deep" / "ca").stat().st_mode) == 0o700


def test_the_authority_issues_with_the_root_key_offline(tmp_path: Path) -> None:
    save_new(create_authority("d.example"), tmp_path / "ca")
    (tmp_path / "ca" / "root-key.pem").unlink()
    assert load_authority(tmp_path / "ca").issue(Role.NODE, "edge1").chain_pem


def test_saving_keeps_existing_files(tmp_path: Path) -> None:
    first = create_authority("d.example")
    save_new(first, tmp_path / "ca")
    with pytest.raises(FileExistsError):
        save_new(create_authority("d.example"), tmp_path / "ca")
    assert load_authority(tmp_path / "ca") == first.authority


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"root\.pem cannot be read: No such file"):
        load_authority(tmp_path / "nowhere")
    new = create_authority("d.example")
    save_new(new, tmp_path / "ca")
    (tmp_path / "ca" / "issuing-key.pem").chmod(0o604)
    with pytest.raises(AuthorityError, match=r"run: chmod 600 /"):
        load_authority(tmp_path / "ca")


def test_parts_of_two_authorities_are_not_mixed(tmp_path: Path) -> None:
    new, other = create_authority("d.example"), create_authority("d.example")
    mixed = replace(
        new.authority, issuing=replace(new.authority.issuing, key_pem=other.authority.issuing.key_pem)
    )
    save_new(replace(new, authority=mixed), tmp_path / "ca")
    with pytest.raises(AuthorityError, match="is not the key of issuing"):
        load_authority(tmp_path / "ca")


def test_a_leaf_in_place_of_the_issuing_certificate_is_refused(tmp_path: Path) -> None:
    new = create_authority("d.example")
    leaf = new.authority.issue(Role.SERVER, "main").credential
    save_new(replace(new, authority=replace(new.authority, issuing=leaf)), tmp_path / "ca")
    with pytest.raises(AuthorityError, match="not the certificate of an authority"):
        load_authority(tmp_path / "ca")


@pytest.mark.parametrize("name", ["", "Edge1", "edge_1", "a..b", "-a", "a/b", "a" * 254, "ä", "a\n"])
def test_bad_names_are_refused(authority: Authority, name: str) -> None:
    with pytest.raises(ValueError, match="not a node name"):
        authority.issue(Role.NODE, name)


def test_a_leaf_may_not_outlive_its_issuer(authority: Authority) -> None:
    with pytest.raises(AuthorityError, match="ask for fewer days"):
        authority.issue(Role.NODE, "edge1", days=2000)


def test_validity_periods_are_as_documented(authority: Authority) -> None:
    now = datetime.datetime.now(datetime.UTC)
    leaf = authority.issue(Role.NODE, "edge1")
    lives = [
        describe(pem).ends - now
        for pem in (authority.roots_pem, authority.issuing.certificate_pem, leaf.chain_pem)
    ]
    assert [round(life / datetime.timedelta(days=1)) for life in lives] == [3652, 1826, 365]
    assert now - describe(leaf.chain_pem).begins >= datetime.timedelta(minutes=59)


@pytest.mark.parametrize(
    ("first", "domain"),
    [
        ("tunnel.example.com", "tunnel.example.com"),
        ("hub", "hub"),
        ("localhost", "qanat.internal"),
        ("demo.localhost", "qanat.internal"),
        ("127.0.0.1", "qanat.internal"),
        ("2001:db8::1", "qanat.internal"),
    ],
)
def test_the_trust_domain_follows_the_first_name(first: str, domain: str) -> None:
    assert default_trust_domain(first) == domain


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Tunnel.Example.COM.", "tunnel.example.com"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("::1", "::1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_server_names_have_one_spelling(text: str, name: str) -> None:
    assert canonical_name(text) == name


@pytest.mark.parametrize("text", ["", "*.example.com", "https://a", "a:443", "10.0.0", "fe80::1%eth0", "a b"])
def test_other_server_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a"):
        canonical_name(text)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt install openssl")
@pytest.mark.parametrize(("role", "purpose"), [(Role.SERVER, "sslserver"), (Role.NODE, "sslclient")])
def test_openssl_agrees(authority: Authority, tmp_path: Path, role: Role, purpose: str) -> None:
    leaf = authority.issue(role, "main", names=["localhost"] if role is Role.SERVER else [])
    (tmp_path / "roots.pem").write_bytes(leaf.roots_pem)
    (tmp_path / "chain.pem").write_bytes(leaf.chain_pem)
    assert openssl_verify(tmp_path, purpose)
    assert not openssl_verify(tmp_path, "sslclient" if purpose == "sslserver" else "sslserver")


def openssl_verify(folder: Path, purpose: str) -> bool:
    trust = ["-CAfile", "roots.pem", "-untrusted", "chain.pem"]
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, *trust, "chain.pem"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0  # noqa: S603
