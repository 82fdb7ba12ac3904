"""Every wrong certificate is refused by the side that must refuse it, with a reason."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from certs.authority_folder import load_authority
from certs.bundle import read_bundle, write_bundle
from certs.ca import create_authority
from tests.support.net import clients
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import AGENTS_PORT, HTTPS_PORT, Agent
from tests.support.processes.site import ECHO, Site
from tests.support.processes.waiting import wait_until
from tunnel_core.identity import Role

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def stranger(unharmed: Site, folder: Path) -> Agent:
    """An agent at the second edge beside the real one. A test gives it a wrong bundle."""
    agent = Agent("edge2", folder / "stranger", unharmed.network.edge(2))
    agent.configure(unharmed.server, allow=[f"localhost:{ECHO}"], ops={"listen": "127.0.0.1:7105"})
    agent.move_ops(7105)
    return agent


def _refused_log(site: Site, agent: Agent, pattern: str) -> str:
    """Runs the agent until it has been refused; it must neither attach nor disturb who is attached."""
    sessions = site.server.metric("qanat_sessions")
    agent.process.start()
    try:
        agent.process.wait_log(pattern, deadline_seconds=15)
        assert site.server.metric("qanat_sessions") == sessions
        return agent.process.log_text()
    finally:
        agent.process.kill()


def test_a_node_of_another_authority(unharmed: Site, stranger: Agent) -> None:
    """The node trusts the server, so only the server can refuse the node."""
    ours = read_bundle(unharmed.agents["edge2"].bundle)
    theirs = create_authority("qanat.internal").authority.issue(Role.NODE, "edge2")
    bundle = replace(ours, key_pem=theirs.credential.key_pem, chain_pem=theirs.chain_pem)
    write_bundle(stranger.bundle, bundle)
    _refused_log(unharmed, stranger, "cannot attach")


def test_a_server_of_another_authority(unharmed: Site, stranger: Agent) -> None:
    """The agent has other roots, so the agent refuses, and names the issuer of what it saw."""
    ours = read_bundle(unharmed.agents["edge2"].bundle)
    write_bundle(
        stranger.bundle, replace(ours, roots_pem=create_authority("qanat.internal").authority.roots_pem)
    )
    _refused_log(unharmed, stranger, "cannot attach")


def test_an_expired_node(unharmed: Site, stranger: Agent) -> None:
    ours = read_bundle(unharmed.agents["edge2"].bundle)
    authority = load_authority(unharmed.server.data_dir / "ca")
    old = authority.issue(Role.NODE, "edge2", days=1, now=LONG_AGO)
    write_bundle(stranger.bundle, replace(ours, key_pem=old.credential.key_pem, chain_pem=old.chain_pem))
    _refused_log(unharmed, stranger, "cannot attach|expired")


def test_a_user_as_a_node(unharmed: Site, stranger: Agent) -> None:
    """The bundle names a node, the certificate a user; only the certificate counts."""
    node, user = read_bundle(unharmed.agents["edge2"].bundle), read_bundle(unharmed.server.user_bundle)
    write_bundle(stranger.bundle, replace(node, key_pem=user.key_pem, chain_pem=user.chain_pem))
    _refused_log(unharmed, stranger, "wrong_role|another role|is a user")


def test_a_node_of_another_trust_domain(unharmed: Site, stranger: Agent) -> None:
    """Signed by the right authority all the same: the name alone must be enough to refuse it."""
    ours = read_bundle(unharmed.agents["edge2"].bundle)
    authority = replace(load_authority(unharmed.server.data_dir / "ca"), trust_domain="elsewhere.example")
    other = authority.issue(Role.NODE, "edge2")
    write_bundle(stranger.bundle, replace(ours, key_pem=other.credential.key_pem, chain_pem=other.chain_pem))
    _refused_log(unharmed, stranger, "trust.domain")


def test_a_node_as_a_user(unharmed: Site) -> None:
    bundle = unharmed.agent.bundle
    with unharmed.server.connect_tls(f"edge1:{ECHO}", bundle) as refused:
        assert refused.status == 403
    argv = [tools.program("qanat"), "--bundle", str(bundle), "nodes"]
    done = run(*argv, namespace=unharmed.network.cloud)
    assert done.returncode == 3, done.stderr


def test_no_certificate_at_all(unharmed: Site) -> None:
    connection = unharmed.server.dial_tls(HTTPS_PORT, None)
    with clients.connect(connection, f"edge1:{ECHO}") as refused:
        assert refused.status == 401


def test_users_with_wrong_certificates(unharmed: Site, folder: Path) -> None:
    authority = load_authority(unharmed.server.data_dir / "ca")
    expired = authority.issue(Role.USER, "kim", days=1, now=LONG_AGO)
    other = create_authority("qanat.internal").authority.issue(Role.USER, "kim")
    for name, leaf in (("expired", expired), ("other", other)):
        identity = folder / f"{name}.pem"
        identity.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
        assert _is_refused(unharmed, identity), name


def _is_refused(site: Site, identity: Path) -> bool:
    """In TLS 1.3 a client learns of its refused certificate only after its own handshake is done."""
    try:
        with site.server.connect_tls(f"edge1:{ECHO}", identity) as answer:
            return answer.status in (0, 401)
    except (ssl.SSLError, ConnectionError):
        return True


def test_a_good_user_over_tls(unharmed: Site) -> None:
    with unharmed.server.connect_tls(f"edge1:{ECHO}") as answer:
        assert answer.status == 200
        assert answer.echoes(b"over mutual TLS")


def test_tls_1_2_at_the_https_port(unharmed: Site) -> None:
    with unharmed.network.cloud.entered(), pytest.raises((ssl.SSLError, ConnectionError)):
        clients.dial_tls(
            (unharmed.server.loopback, HTTPS_PORT),
            identity=unharmed.server.user_bundle,
            newest=ssl.TLSVersion.TLSv1_2,
        )


def test_tls_1_2_at_the_agents_port(unharmed: Site) -> None:
    """The handshake fails for the client, and the log has the cause: with curl and a node's certificate."""
    bundle = str(unharmed.agents["edge2"].bundle)
    argv = [
        tools.path_of("curl"),
        "--silent",
        "--show-error",
        "--max-time",
        "5",
        "--http2",
        "--tls-max",
        "1.2",
    ]
    argv += [
        "--cert",
        bundle,
        "--cacert",
        str(unharmed.server.trust_file),
        "--dump-header",
        "-",
        "--output",
        "-",
    ]
    argv += ["-H", "te: trailers", "-H", "content-type: application/grpc", "--data-binary", ""]
    url = f"https://{unharmed.server.address}:{AGENTS_PORT}/qanat.v1.Tunnel/Attach"
    log = unharmed.server.process
    since = log.log_size()
    done = run(*argv, url, namespace=unharmed.network.cloud)
    assert "alert protocol version" in done.stderr, f"{done.stdout}{done.stderr}"
    wait_until(lambda: "tls_too_old" in log.log_text(since), "the reason in the log")
