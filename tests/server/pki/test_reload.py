"""A server's certificates and authority, read again while it runs."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

from certs.authority_folder import load_authority
from certs.rotation import RotationStep
from certs.x509 import Usage, proven_leaf
from tests.server.commands.test_init import run
from tests.support.fakes.credentials import credential_watch
from tests.support.pki import authority as pki
from tunnel_core.config.loader import load
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.config import ServerConfig
from tunnel_server.pki.reload import Reload, ServerAuthority, ServerCertificates
from tunnel_server.pki.rotation_steps import RotationSteps
from tunnel_server.pki.server_credentials import BadCredentials


def now() -> datetime:
    return datetime.now(UTC)


class Files:
    """The files of ``qanat-server init``, and what reloads them."""

    def __init__(self, folder: Path) -> None:
        assert run("init", "--name", "tunnel.example.com", "--data-dir", folder).exit_code == 0
        self.config = load(folder / "server.toml", ServerConfig)
        self.ahead = timedelta()
        self.certificates = ServerCertificates(self.config, "h2", lambda: now() + self.ahead)
        self.authority = ServerAuthority(self.config)
        self.watch: CredentialWatch = credential_watch()
        self.reload = Reload(self.certificates, self.authority, self.watch)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "data")


def test_new_files_are_used_from_the_reload_on(files: Files) -> None:
    before = files.certificates
    https, agents, bundle, signer = (
        *(before.https.current, before.agents.current, before.trust_bundle),
        files.authority.signer(),
    )
    trust = files.config.tls.trust_file
    trust.write_bytes(trust.read_bytes() + pki.authority().roots_pem)
    assert (before.trust_bundle, before.https.current) == (bundle, https)
    files.reload.reload()
    assert before.trust_bundle == bundle + pki.authority().roots_pem
    assert before.https.current is not https and before.agents.current is not agents
    assert files.authority.signer() not in (signer, None)


@pytest.mark.parametrize("name", ["certificate_file", "key_file", "trust_file"])
def test_a_bad_file_changes_nothing(files: Files, name: str, caplog: pytest.LogCaptureFixture) -> None:
    certificates = files.certificates
    before = (
        *(certificates.https.current, certificates.agents.current, certificates.trust_bundle),
        *(certificates.description, files.authority.signer()),
    )
    file: Path = getattr(files.config.tls, name)
    file.write_bytes(b"nonsense")
    caplog.clear()
    files.reload.reload()
    after = (
        *(certificates.https.current, certificates.agents.current, certificates.trust_bundle),
        *(certificates.description, files.authority.signer()),
    )
    assert after == before
    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.getMessage().startswith(f"the certificates stay as they were: {file}")


def test_bad_files_at_the_start_are_an_error(files: Files) -> None:
    files.config.tls.certificate_file.unlink()
    with pytest.raises(BadCredentials, match="there is no file"):
        ServerCertificates(files.config, "h2", now)


def test_roots_for_users_let_no_agent_in(files: Files, tmp_path: Path) -> None:
    alone = files.certificates
    assert alone.agents.current.verify_mode is ssl.CERT_REQUIRED
    assert alone.https.current.verify_mode is ssl.CERT_OPTIONAL
    users = tmp_path / "users.pem"
    users.write_bytes(pki.authority().roots_pem)
    tls = attrs.evolve(files.config.tls, user_trust_file=users)
    both = ServerCertificates(attrs.evolve(files.config, tls=tls), "h2", now)
    assert len(both.https.current.get_ca_certs()) == len(alone.https.current.get_ca_certs()) + 1
    assert len(both.agents.current.get_ca_certs()) == len(alone.agents.current.get_ca_certs())


@pytest.mark.parametrize("forced", [True, False])
async def test_a_forced_retirement_ends_what_lives_by_the_old_root(files: Files, forced: bool) -> None:
    before = load_authority(files.config.data_dir / "ca").issue(Role.USER, "kim").credential.certificate_pem
    ended: list[Refused] = []
    proven = proven_leaf(before, usage=Usage.CLIENT)
    files.watch.register(proven, ended.append)
    rotating = RotationSteps(files.config)
    for step in (RotationStep.ADD, RotationStep.SWITCH, RotationStep.RETIRE):
        rotating.take(step)
        files.reload.after_rotation(step, forced and step is RotationStep.RETIRE)
        assert len(ended) == (forced and step is RotationStep.RETIRE)
    if forced:
        assert ended[0].reason is Reason.ROOT_RETIRED


def test_the_certificate_expires_by_the_given_clock(files: Files) -> None:
    assert not files.certificates.is_expired()
    files.ahead = timedelta(days=10_000)
    assert files.certificates.is_expired()
