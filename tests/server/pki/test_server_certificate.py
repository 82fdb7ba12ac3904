"""The server's own certificate: renewed at two thirds of its life, and only if this server issued it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from certs.authority_folder import ISSUING_KEY, read_rotation, save_generation, save_new, write_rotation
from certs.bundle import split_pem
from certs.ca import AuthorityError, NewAuthority, create_authority, create_issuing
from certs.x509 import describe, facts_of, public_key_of
from tests.support.fakes.opened_store import opened
from tests.support.pki import authority as pki
from tests.support.processes.servers import Site
from tunnel_core.config.loader import load
from tunnel_core.identity import Role
from tunnel_server.config import ServerConfig
from tunnel_server.pki.server_certificate import OwnCertificate, check_renewal
from tunnel_server.store.settings import settings_of

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ("tunnel.example.com", "127.0.0.1")


def installed(
    folder: Path, *, days: float = 30, began: timedelta = timedelta()
) -> tuple[ServerConfig, NewAuthority]:
    """A server with an authority of its own, whose certificate was issued ``began`` ago."""
    new = create_authority(pki.TRUST_DOMAIN)
    save_new(new, folder / "ca")
    site = Site(folder)
    site.write(new.authority.issue(Role.SERVER, "main", names=NAMES, days=days, now=NOW - began))
    (folder / "trust.pem").write_bytes(new.authority.roots_pem)
    return load(site.config, ServerConfig), new


@pytest.mark.parametrize(
    ("age_days", "due"), [(0, False), (19.9, False), (20.1, True), (29.9, True), (31, True)]
)
def test_the_certificate_is_due_at_two_thirds_of_its_validity(
    tmp_path: Path, age_days: float, due: bool
) -> None:
    config, _ = installed(tmp_path, began=timedelta(days=age_days))
    looked = check_renewal(config, NOW)
    assert (looked.renewed is not None) == due
    assert looked.seconds == 3600
    if looked.renewed is not None:
        before, after = config.tls.certificate_file.read_bytes(), looked.renewed.chain_pem
        assert describe(after).ends == NOW + timedelta(days=30)
        assert describe(after).names == describe(before).names == NAMES
        assert describe(after).uris == describe(before).uris
        assert public_key_of(after) == public_key_of(before)  # the key file stays


def test_the_next_check_is_when_the_renewal_is_due(tmp_path: Path) -> None:
    config, _ = installed(tmp_path, days=60 / 86400)
    assert check_renewal(config, NOW).seconds == 40
    assert check_renewal(config, NOW + timedelta(seconds=39.5)).seconds == 1
    looked = check_renewal(config, NOW + timedelta(seconds=41))
    assert looked.renewed is not None and looked.seconds == 40


def test_a_certificate_of_another_issuer_is_not_renewed(tmp_path: Path) -> None:
    config, _ = installed(tmp_path, began=timedelta(days=25))
    Site(tmp_path).write_certificate(pki.server_leaf())
    assert check_renewal(config, NOW + timedelta(days=360)).renewed is None
    other = tmp_path / "other"
    other.mkdir()
    Site(other).write()  # without any authority
    assert check_renewal(load(other / "server.toml", ServerConfig), NOW + timedelta(days=360)).renewed is None


def test_the_certificate_never_outlives_the_issuing_one(tmp_path: Path) -> None:
    config, _ = installed(tmp_path, days=1825, began=timedelta(days=1300))
    file = config.tls.certificate_file
    for days, ends in ((0, 1825), (1800, 1826)):  # the issuing certificate's last day
        looked = check_renewal(config, NOW + timedelta(days=days))
        assert looked.renewed is not None
        description = describe(looked.renewed.chain_pem).ends
        assert abs(description - NOW - timedelta(days=ends)) < timedelta(hours=1)
        file.write_bytes(looked.renewed.chain_pem)
    with pytest.raises(AuthorityError, match="`qanat-server ca rotate issuing` is due"):
        check_renewal(config, NOW + timedelta(days=1820))


def test_the_newest_issuing_certificate_signs(tmp_path: Path) -> None:
    config, new = installed(tmp_path, began=timedelta(days=25))
    folder = tmp_path / "ca"
    rotation = read_rotation(folder)
    issuing = create_issuing(new.root, pki.TRUST_DOMAIN)
    generation = save_generation(folder, rotation, new.root.certificate_pem, None, issuing)
    write_rotation(folder, rotation.replace_issuing(generation))
    renewed = check_renewal(config, NOW).renewed
    assert renewed is not None
    assert describe(split_pem(renewed.chain_pem)[1]).serial == describe(issuing.certificate_pem).serial


async def test_the_renewed_certificate_is_recorded_put_in_place_and_announced(tmp_path: Path) -> None:
    config, _ = installed(tmp_path, began=timedelta(days=25))
    reloaded: list[bytes] = []

    def renewed() -> None:
        reloaded.append(config.tls.certificate_file.read_bytes())

    async with opened(tmp_path, lambda: NOW, settings_of(config)) as store:  # type: ignore[arg-type]
        own = OwnCertificate(config, store, trio.Lock(), lambda: NOW, renewed)
        assert await own.renew_if_due() == 3600
        assert await own.renew_if_due() == 3600
        [chain] = reloaded
        [known] = await store.certificates(role="server")
        assert (known["serial"], known["origin"]) == (facts_of(chain).serial, "renewed")


async def test_a_certificate_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    config, _ = installed(tmp_path, began=timedelta(days=25))
    file, real = config.tls.certificate_file, tmp_path / "kept.pem"
    file.rename(real)
    file.symlink_to(real)
    async with opened(tmp_path, lambda: NOW, settings_of(config)) as store:  # type: ignore[arg-type]
        await OwnCertificate(config, store, trio.Lock(), lambda: NOW, lambda: None).renew_if_due()
    assert file.is_symlink() and describe(real.read_bytes()).ends == NOW + timedelta(days=30)


async def test_a_failure_is_logged_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, _ = installed(tmp_path, days=30 / 86400, began=timedelta(seconds=25))
    (tmp_path / "ca" / ISSUING_KEY).unlink()
    (tmp_path / "ca" / ISSUING_KEY).mkdir()
    async with opened(tmp_path, lambda: NOW, settings_of(config)) as store:  # type: ignore[arg-type]
        own = OwnCertificate(config, store, trio.Lock(), lambda: NOW, lambda: None)
        assert (
            await own.renew_if_due() == 1
        )  # a tenth of the five seconds that are left, and no less than one
    assert "the server's certificate could not be renewed" in caplog.text
