"""Certificates of the listener for browsers: the operator's files, and the server's own."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from certs.ca import Leaf
from certs.files import write_private
from tests.support.pki import authority as pki
from tunnel_core.config.types import DnsName
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason
from tunnel_server.config import Tls
from tunnel_server.listeners.named_contexts import NamedContext
from tunnel_server.pki.server_credentials import BadCredentials
from tunnel_server.pki.web_certificates import WebCertificates
from tunnel_server.web_config import Web, WebCertificate, WebLogin

DOMAIN = "edge.example"


def now() -> datetime:
    return datetime.now(UTC)


def leaf(*names: str) -> Leaf:
    return pki.authority().issue(Role.SERVER, "web", names=names)


def write_pair(folder: Path, name: str, given: Leaf) -> WebCertificate:
    """Write a pair, with a date that differs from that of the pair before."""
    pair = WebCertificate(certificate_file=folder / f"{name}.pem", key_file=folder / f"{name}.key")
    write_private(pair.key_file, given.credential.key_pem)
    pair.certificate_file.write_bytes(given.chain_pem)
    return pair


def server_tls(folder: Path) -> Tls:
    (folder / "trust.pem").write_bytes(pki.authority().roots_pem)
    return Tls(
        certificate_file=folder / "server.pem",
        key_file=folder / "server.key",
        trust_file=folder / "trust.pem",
    )


def open_certificates(folder: Path, *pairs: WebCertificate, **changes: object) -> WebCertificates:
    web = Web(domain=DnsName(DOMAIN), certificate=pairs, **changes)
    return WebCertificates(web, server_tls(folder), folder / "ca", now)


def shown_to(certificates: WebCertificates, host: str | None) -> tuple[str, ...]:
    """Return the names in the certificate that a client sees which asks for ``host``, by a real handshake."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.load_verify_locations(cadata=pki.authority().roots_pem.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificates.contexts.current.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(4):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    found = client.getpeercert()
    assert found is not None
    assert isinstance(server.context, NamedContext)
    return tuple(str(value) for kind, value in found["subjectAltName"] if kind == "DNS")


def test_the_clients_name_chooses_one_of_several_pairs(tmp_path: Path) -> None:
    certificates = open_certificates(
        tmp_path,
        write_pair(tmp_path, "wild", leaf(f"*.{DOMAIN}")),
        write_pair(tmp_path, "exact", leaf(f"red--edge1.{DOMAIN}")),
    )
    assert shown_to(certificates, f"red--edge1.{DOMAIN}") == (f"red--edge1.{DOMAIN}",)
    assert shown_to(certificates, f"BLUE--edge1.{DOMAIN}") == (f"*.{DOMAIN}",)
    assert shown_to(certificates, "another.example") == (f"*.{DOMAIN}",)  # the first pair
    assert shown_to(certificates, None) == (f"*.{DOMAIN}",)


def test_only_a_changed_pair_is_read_again(tmp_path: Path) -> None:
    pair, other = write_pair(tmp_path, "a", leaf("a.example")), write_pair(tmp_path, "b", leaf("b.example"))
    certificates = open_certificates(tmp_path, pair, other)
    before = certificates.contexts.find("b.example")
    certificates.reload_changed()
    assert shown_to(certificates, "a.example") == ("a.example",)
    write_pair(tmp_path, "a", leaf("a.example", "a2.example"))
    os.utime(pair.key_file, (1, 1))
    certificates.reload_changed()
    assert shown_to(certificates, "a2.example") == ("a.example", "a2.example")
    assert certificates.contexts.find("b.example") is before


def test_a_broken_pair_keeps_the_old_one_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = write_pair(tmp_path, "a", leaf("a.example"))
    certificates = open_certificates(tmp_path, pair)
    pair.certificate_file.write_bytes(leaf("new.example").chain_pem)  # its key is written a moment later
    caplog.clear()
    for _ in range(3):
        certificates.reload_changed()
    (record,) = [line for line in caplog.records if line.levelno >= logging.ERROR]
    assert vars(record)["reason"] == Reason.CERTIFICATE_UNUSABLE.word
    assert "its key file has the key of another certificate" in record.getMessage()
    assert shown_to(certificates, "a.example") == ("a.example",)
    write_pair(tmp_path, "a", leaf("new.example"))
    certificates.reload_changed()
    assert shown_to(certificates, "new.example") == ("new.example",)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_pair_that_cannot_be_used_at_the_start_is_refused(tmp_path: Path, content: bytes | None) -> None:
    pair = write_pair(tmp_path, "a", leaf("a.example"))
    if content is None:
        pair.certificate_file.unlink()
    else:
        pair.certificate_file.write_bytes(content)
    with pytest.raises(BadCredentials, match=r"a\.pem"):
        open_certificates(tmp_path, pair)


def test_an_expired_certificate_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fleet must not lose its server because nobody renewed the certificate for browsers."""
    open_certificates(tmp_path, write_pair(tmp_path, "a", pki.expired_leaf(Role.SERVER, "web")))
    assert "the certificate for browsers has expired" in caplog.text


async def test_changed_files_are_noticed_without_a_signal(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = open_certificates(tmp_path, write_pair(tmp_path, "a", leaf("a.example")))
    used = trio.Event()
    contexts = certificates.contexts.use

    def use(given: Sequence[NamedContext]) -> None:
        contexts(given)
        trio.from_thread.run_sync(used.set)

    monkeypatch.setattr(certificates.contexts, "use", use)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(certificates.keep_current)
        write_pair(tmp_path, "a", leaf("new.example"))
        await used.wait()
        nursery.cancel_scope.cancel()
    assert certificates.contexts.find("new.example") is not None


def test_the_own_authority_certifies_the_domain(tmp_path: Path) -> None:
    pki.save_authority(tmp_path / "ca")
    certificates = open_certificates(tmp_path, own_certificate=True)
    assert shown_to(certificates, f"red--edge1.{DOMAIN}") == (DOMAIN, f"*.{DOMAIN}")


def test_the_own_certificate_is_renewed_after_two_thirds_of_its_life(tmp_path: Path) -> None:
    pki.save_authority(tmp_path / "ca")
    ahead = timedelta()
    web = Web(domain=DnsName(DOMAIN), own_certificate=True)
    certificates = WebCertificates(web, server_tls(tmp_path), tmp_path / "ca", lambda: now() + ahead)
    first = certificates.contexts.current
    ahead = timedelta(days=200)
    certificates.reload_changed()
    assert certificates.contexts.current is first
    ahead = timedelta(days=250)
    certificates.reload_changed()
    renewed = certificates.contexts.current
    assert renewed is not first
    certificates.reload_changed()
    assert certificates.contexts.current is renewed


def test_a_renewal_that_fails_is_tried_again_each_hour(tmp_path: Path) -> None:
    pki.save_authority(tmp_path / "ca")
    ahead = timedelta()
    web = Web(domain=DnsName(DOMAIN), own_certificate=True)
    certificates = WebCertificates(web, server_tls(tmp_path), tmp_path / "ca", lambda: now() + ahead)
    first = certificates.contexts.current
    (tmp_path / "ca").rename(tmp_path / "away")
    ahead = timedelta(days=250)
    certificates.reload_changed()
    assert certificates.contexts.current is first
    (tmp_path / "away").rename(tmp_path / "ca")
    certificates.reload_changed()
    assert certificates.contexts.current is first
    ahead += timedelta(hours=1)
    certificates.reload_changed()
    assert certificates.contexts.current is not first


def test_without_an_authority_there_is_no_own_certificate(tmp_path: Path) -> None:
    with pytest.raises(BadCredentials, match=r"\[\[web.certificate\]\]"):
        open_certificates(tmp_path, own_certificate=True)


def test_users_certificates_are_asked_for_only_if_they_are_the_login(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, "a", leaf("a.example"))
    assert open_certificates(tmp_path, pair).contexts.current.verify_mode is ssl.CERT_NONE
    certificates = open_certificates(tmp_path, pair, login=WebLogin.CERTIFICATE)
    assert certificates.contexts.current.verify_mode is ssl.CERT_OPTIONAL
