"""Files that people edit, with a byte order mark: accepted. In UTF-16: refused, and the message names UTF-16.

Tokens that are pasted with one are tested in ``join/test_wrong_uses``.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import h11
import pytest
import trio
from click.testing import CliRunner

from certs.bundle import BundleError, format_bundle, read_bundle, split_pem
from certs.files import KeyFileError, read_private, write_private
from tests.support.net.listening import listening
from tests.support.pki.authority import authority, bundle_of, server_context
from tests.support.processes.cloud import Cloud, machine
from tunnel_agent.config import AgentConfig
from tunnel_agent.installation import load_installation
from tunnel_agent.main import main as agent_main
from tunnel_agent.network.happy_eyeballs import connect_address
from tunnel_agent.targets.policy import Published
from tunnel_agent.targets.tls import TargetTls
from tunnel_core.config.loader import ConfigError, load
from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.runtime.health_probe import OpsEndpoint, Unhealthy
from tunnel_core.telemetry.ops_server import OpsAccess
from tunnel_server.config import ServerConfig

MARK = b"\xef\xbb\xbf"
Encode = Callable[[bytes], bytes]


def marked(data: bytes) -> bytes:
    return MARK + data


def wide(data: bytes) -> bytes:
    return data.decode().encode("utf-16")


AGENT_TEXT = b'allow = ["localhost:22"]\r\n[ops]\r\nlisten = "127.0.0.1:7999"\r\n'
UTF_16 = "is UTF-16 text"


# Configuration.


def test_the_agents_configuration(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(marked(AGENT_TEXT))
    assert [str(entry) for entry in load(file, AgentConfig, environ={}).allow] == ["localhost:22"]
    assert OpsEndpoint.find(file, "", {}).listen == "127.0.0.1:7999"
    file.write_bytes(wide(AGENT_TEXT))
    with pytest.raises(ConfigError, match=f"agent.toml: {UTF_16}.*save it as UTF-8"):
        load(file, AgentConfig, environ={})
    with pytest.raises(Unhealthy, match=UTF_16):
        OpsEndpoint.find(file, "", {})
    file.write_bytes(b"# Gr\xfc\xdfe\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 0xfc in line 1"):
        load(file, AgentConfig, environ={})


def test_the_servers_configuration(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_bytes(marked(b'trust_domain = "a.example"\n'))
    assert load(file, ServerConfig, environ={}).trust_domain == "a.example"
    file.write_bytes(wide(b'trust_domain = "a.example"\n'))
    with pytest.raises(ConfigError, match=UTF_16):
        load(file, ServerConfig, environ={})


# Bundles and keys.


def test_a_bundle(tmp_path: Path) -> None:
    file, bundle = tmp_path / "node.pem", bundle_of(Role.NODE, "edge1", agents=("a:7001",))
    write_private(file, marked(format_bundle(bundle)).replace(b"\n", b"\r\n"))
    assert read_bundle(file) == bundle
    write_private(file, wide(format_bundle(bundle)))
    with pytest.raises(BundleError, match=f"node.pem {UTF_16}"):
        read_bundle(file)


def test_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_private(file, marked(b"-----BEGIN"))
    assert read_private(file) == b"-----BEGIN"
    write_private(file, wide(b"-----BEGIN"))
    with pytest.raises(KeyFileError, match=UTF_16):
        read_private(file)


def test_certificates_in_memory() -> None:
    pem = authority().roots_pem
    assert split_pem(marked(pem)) == [pem]
    with pytest.raises(ValueError, match=UTF_16):
        split_pem(wide(pem))


# Secrets.


def test_the_proxys_password(tmp_path: Path) -> None:
    write_private(tmp_path / "node.pem", format_bundle(bundle_of(Role.NODE, "edge1", agents=("a:7001",))))
    config, password = tmp_path / "agent.toml", tmp_path / "password"
    config.write_text('proxy = "http://me@proxy:1"\nproxy_password_file = "password"\n')
    password.write_bytes(marked("geheim ß\r\n".encode()))
    assert load_installation(config).proxy.password == "geheim ß"  # noqa: S105 - of the test
    password.write_bytes(wide(b"geheim"))
    with pytest.raises(ConfigError, match=f"proxy_password_file: .*password {UTF_16}"):
        load_installation(config)


def test_the_bearer_token_of_the_ops_listener(tmp_path: Path) -> None:
    file = tmp_path / "token"
    request = h11.Request(
        method="GET", target="/metrics", headers=[("host", "x"), ("authorization", "Bearer s3")]
    )
    file.write_bytes(marked(b"s3\r\n"))
    OpsAccess(file, None).check(request, b"")
    file.write_bytes(wide(b"s3"))
    with pytest.raises(Refused, match="bearer token"):
        OpsAccess(file, None).check(request, b"")


@pytest.mark.parametrize(("encode", "says"), [(wide, UTF_16), (None, "cannot be read: No such file")])
def test_status_with_a_bearer_token(tmp_path: Path, encode: Encode | None, says: str) -> None:
    config, file = tmp_path / "agent.toml", tmp_path / "token"
    config.write_text('[ops]\nlisten = "127.0.0.1:1"\nbearer_file = "token"\n')
    if encode is not None:
        file.write_bytes(encode(b"s3"))
    ran = CliRunner().invoke(agent_main, ["status", "--config", str(config)])
    assert (ran.exit_code, says in ran.output) == (2, True), ran.output


# Roots of a target, and the server's own files.


@pytest.mark.parametrize("encode", [bytes, marked])
async def test_the_roots_of_an_https_service(tmp_path: Path, encode: Encode) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(encode("# Größe\n".encode() + authority().roots_pem))
    assert await handshake_of(file, tmp_path) is None


async def test_the_roots_of_an_https_service_in_utf_16(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(wide(authority().roots_pem))
    refused = await handshake_of(file, tmp_path)
    assert refused is not None and refused.reason is Reason.DIAL_FAILED
    assert UTF_16 in refused.detail and "ca.pem" in refused.detail


async def handshake_of(ca_file: Path, folder: Path) -> Refused | None:
    """Shake hands with a target whose certificate is of the tests' authority; returns the failure."""
    context = server_context(folder)
    context.verify_mode = ssl.CERT_NONE

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await trio.SSLStream(stream, context, server_side=True).do_handshake()

    async with listening(serve) as address:
        target = Target.parse(address)
        stream = await connect_address(target.host, target.port)
        service = Published("web", target, "https", str(ca_file))
        try:
            await trio.aclose_forcefully(await TargetTls("edge1", "agent.toml").wrap(stream, service))
        except Refused as refused:
            return refused
    return None


async def test_a_server_all_of_whose_files_have_a_mark(tmp_path: Path) -> None:
    """gRPC, OpenSSL, the signer and the agents that receive roots all read these files."""
    cloud = Cloud(tmp_path / "cloud", {})
    cloud.make()
    for name in ("server.toml", "server.pem", "server.key", "trust.pem"):
        file = cloud.folder / name
        file.write_bytes(marked(file.read_bytes()))
    with cloud.serving():
        edge = machine(tmp_path)
        edge.config.write_bytes(marked(b'allow = ["localhost:22"]\n'))
        joined = await edge.join(cloud.https, await cloud.token("edge1"))
        assert joined.code == 0, joined
        edge.bundle.write_bytes(marked(edge.bundle.read_bytes()))
        assert (await edge.run("renew")).returncode == 0
