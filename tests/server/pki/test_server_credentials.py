"""The server's own certificate: a fault in it is reported at start, before a client connects."""

from __future__ import annotations

import datetime
import errno
import logging
import os
from pathlib import Path

import attrs
import pytest

from certs.authority_folder import save_new
from certs.ca import Leaf, create_authority
from certs.files import write_private
from tests.support.pki import authority as pki
from tunnel_core.identity import Role
from tunnel_server.config import Tls
from tunnel_server.listeners.tls import make_context
from tunnel_server.pki.server_credentials import BadCredentials, read_credentials, tls_files

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def files(folder: Path, leaf: Leaf | None = None) -> Tls:
    leaf = leaf or pki.server_leaf()
    tls = Tls(
        certificate_file=folder / "server.pem",
        key_file=folder / "server.key",
        trust_file=folder / "trust.pem",
    )
    write_private(tls.key_file, leaf.credential.key_pem)
    tls.certificate_file.write_bytes(leaf.chain_pem)
    tls.trust_file.write_bytes(leaf.roots_pem)
    return tls


def complaint(tls: Tls, now: datetime.datetime = NOW) -> str:
    with pytest.raises(BadCredentials) as caught:
        read_credentials(tls, now)
    return str(caught.value)


def test_good_files_are_what_the_listeners_show(tmp_path: Path) -> None:
    leaf = pki.server_leaf()
    found = read_credentials(files(tmp_path), NOW)
    assert found.tls.chain_pem == leaf.chain_pem
    assert found.tls.key_pem == leaf.credential.key_pem
    assert not found.expired(NOW)
    assert found.expired(NOW + 366 * DAY)


def test_files_with_a_byte_order_mark(tmp_path: Path) -> None:
    tls = files(tmp_path)
    plain = read_credentials(tls, NOW)
    for file in (tls.certificate_file, tls.key_file, tls.trust_file):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_credentials(tls, NOW) == plain
    assert make_context(tls_files(tls)).get_ca_certs()


def test_files_in_utf_16(tmp_path: Path) -> None:
    for name in ("server.pem", "server.key", "trust.pem"):
        tls, file = files(tmp_path), tmp_path / name
        file.write_bytes(file.read_bytes().decode().encode("utf-16"))
        assert complaint(tls) == f"{file} is UTF-16 text, as some Windows programs write it; save it as UTF-8"


def test_the_key_of_another_certificate(tmp_path: Path) -> None:
    tls = files(tmp_path)
    write_private(tls.key_file, pki.server_leaf("second").credential.key_pem)
    assert (
        complaint(tls)
        == f"the key in {tls.key_file} is not that of the certificate in {tls.certificate_file}"
    )


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    tls = files(tmp_path)
    tls.key_file.chmod(0o604)
    assert f"run: chmod 600 {tls.key_file}" in complaint(tls)


def test_a_key_that_this_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    tls = files(tmp_path)
    monkeypatch.setattr("tunnel_server.pki.server_credentials.read_public", refuse)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    cure = "run this as the user that the file belongs to, or as root with sudo"
    assert complaint(tls) == f"{tls.key_file} cannot be read: Permission denied; {cure}"


def test_an_encrypted_key_is_not_asked_a_password_for(tmp_path: Path) -> None:
    tls = files(tmp_path)
    write_private(tls.key_file, b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert "is encrypted" in complaint(tls)


def test_dates(tmp_path: Path) -> None:
    tls = files(tmp_path)
    assert "expired at" in complaint(tls, NOW + 366 * DAY)
    assert "put a new one there" in complaint(tls, NOW + 366 * DAY)
    assert "is not valid before" in complaint(tls, NOW - DAY)


def test_a_certificate_that_is_no_servers(tmp_path: Path) -> None:
    assert "names no DNS name or address" in complaint(files(tmp_path, pki.user_leaf("kim")))


@pytest.mark.parametrize("name", ["server.pem", "server.key", "trust.pem"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    tls = files(tmp_path)
    (tmp_path / name).write_bytes(b"nonsense")
    assert name in complaint(tls)
    (tmp_path / name).unlink()
    assert complaint(tls).startswith(f"there is no file {tmp_path / name}: make one with")


@pytest.mark.parametrize(
    "content", [b"nonsense", b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_key_that_is_none_is_named_alone_and_with_a_cure(tmp_path: Path, content: bytes) -> None:
    tls = files(tmp_path)
    write_private(tls.key_file, content)
    output = complaint(tls)
    assert output.startswith(f"{tls.key_file} holds no private key (PEM) that can be read: put the key of")
    assert "trust.pem" not in output


@pytest.mark.parametrize("name", ["server.pem", "trust.pem"])
def test_a_file_that_is_damaged_behind_its_first_certificate_is_named_alone(
    tmp_path: Path, name: str
) -> None:
    tls = files(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes() + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    output = complaint(tls)
    others = {"server.pem", "trust.pem", "server.key"} - {name}
    assert name in output and not any(other in output for other in others)


def test_an_end_within_thirty_days_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read_credentials(files(tmp_path), NOW).log(NOW)
    leaf = pki.authority().issue(Role.SERVER, "main", names=["localhost"], days=20.5)
    read_credentials(files(tmp_path, leaf), NOW).log(NOW)
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert levels == [
        ("INFO", "server certificate"),
        ("WARNING", "the server's certificate expires in 20 days: replace it, then send SIGHUP"),
    ]


def test_roots_of_others_in_the_trust_file_are_named_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = create_authority(pki.TRUST_DOMAIN), create_authority(pki.TRUST_DOMAIN).authority
    save_new(own, tmp_path / "ca")
    tls = files(tmp_path, own.authority.issue(Role.SERVER, "main", names=["localhost"]))
    read_credentials(tls, NOW).log_other_roots(tmp_path / "ca")
    read_credentials(tls, NOW).log_other_roots(tmp_path / "no such folder")
    assert not caplog.messages
    tls.trust_file.write_bytes(own.authority.roots_pem + other.roots_pem)
    read_credentials(tls, NOW).log_other_roots(tmp_path / "ca")
    (line,) = caplog.messages
    assert line.startswith("1 roots of the trust file are not of this authority: each vouches for every node")
    assert "[tls] user_trust_file" in line


def test_the_root_of_the_servers_own_certificate_is_no_root_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = create_authority(pki.TRUST_DOMAIN), create_authority(pki.TRUST_DOMAIN).authority
    save_new(own, tmp_path / "ca")
    tls = files(tmp_path, other.issue(Role.SERVER, "main", names=["localhost"]))
    tls.trust_file.write_bytes(own.authority.roots_pem + other.roots_pem)
    read_credentials(tls, NOW).log_other_roots(tmp_path / "ca")
    assert not caplog.messages


def test_a_file_of_roots_for_users_is_checked_as_the_others_are(tmp_path: Path) -> None:
    tls = attrs.evolve(files(tmp_path), user_trust_file=tmp_path / "users.pem")
    assert "there is no file" in complaint(tls)
    (tmp_path / "users.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    assert "users.pem holds no certificate" in complaint(tls)
