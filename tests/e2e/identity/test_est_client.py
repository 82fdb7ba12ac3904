"""A foreign EST client gets certificates, and openssl accepts all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certs.bundle import Bundle, write_bundle
from tests.e2e.identity.conftest import HomeMaker
from tests.e2e.identity.est import EstClient
from tests.support.net.namespaces import Network
from tests.support.processes.programs import AGENTS_PORT, HTTPS_PORT, Server
from tests.support.processes.site import ECHO
from tunnel_core.identity import Role, SpiffeId

KEYS = {
    "P-256": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
    "P-384": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"),
    "RSA-2048": ("-newkey", "rsa:2048"),
}


@pytest.fixture
def client(server: Server, network: Network, tmp_path: Path) -> Iterator[EstClient]:
    yield EstClient(server, tmp_path, network.edge(1))


@pytest.mark.parametrize("kind", KEYS)
def test_curl_enrols_and_renews_as_the_rfc_has_it(server: Server, client: EstClient, kind: str) -> None:
    node = f"est-{kind.lower()}"
    request = client.make_request("one", f"/CN={node}", key=KEYS[kind])
    first = client.keep("one", client.enrol(request, server.token(node), user=node))
    again = client.make_request("two", f"/CN={node}", key=KEYS[kind])
    second = client.keep("two", client.renew(again, first, client.folder / "one.key"))
    for certificate in (first, second):
        output = client.openssl("x509", "-in", str(certificate), "-noout", "-text")
        assert f"URI:spiffe://{server.trust_domain}/node/{node}" in output
        assert "TLS Web Client Authentication" in output
        assert "TLS Web Server Authentication" not in output
        assert "CA:FALSE" in output
    serials = [client.openssl("x509", "-in", str(one), "-noout", "-serial") for one in (first, second)]
    assert serials[0] != serials[1]
    assert [line["kind"] for line in server.audit(node=node)] == ["token_created", "enrolled", "renewed"]


def test_the_first_contact_finds_the_root_by_its_pin(server: Server, client: EstClient) -> None:
    """RFC 7030, section 4.1.1: an unverified answer is compared with what is known from elsewhere."""
    shown = client.blocks(client.certificates(client.curl("cacerts", "--insecure")))
    told = {one["root_pin"] for one in server.ask("/api/v1/admin/ca")["generations"]}
    assert told & {_pin(client, one) for one in shown}


def _pin(client: EstClient, certificate: str) -> str:
    public, der = client.folder / "public.pem", client.folder / "public.der"
    public.write_text(client.openssl("x509", "-noout", "-pubkey", stdin=certificate))
    client.openssl("pkey", "-pubin", "-in", str(public), "-outform", "DER", "-out", str(der))
    return client.openssl("dgst", "-sha256", "-r", str(der)).split()[0]


def test_openssl_verifies_our_chains_and_usages(server: Server, client: EstClient) -> None:
    request = client.make_request("node", "/CN=est-usages")
    node = client.keep("node", client.enrol(request, server.token("est-usages")))
    told = client.certificates(client.curl("cacerts", "--cacert", str(client.roots)))
    (client.folder / "cacerts.pem").write_text(told)
    user, own = server.user_bundle, server.data_dir / "server.pem"
    for purpose, certificate, accepted in (
        ("sslclient", node, True),
        ("sslserver", node, False),
        ("sslclient", user, True),
        ("sslserver", user, False),
        ("sslserver", own, True),
        ("sslclient", own, False),
    ):
        output = _verify(client, certificate, "-purpose", purpose)
        assert (": OK" in output) is accepted, f"{certificate.name} as {purpose}: {output}"


def _verify(client: EstClient, certificate: Path, *options: str) -> str:
    """Return openssl's verdict, with the intermediate from ``cacerts`` and the root as the only trust."""
    chain = ["-CAfile", str(client.roots), "-untrusted", str(client.folder / "cacerts.pem"), "-x509_strict"]
    return client.openssl("verify", *chain, *options, str(certificate), check=False)


@pytest.mark.parametrize(("port", "protocol"), [(HTTPS_PORT, "http/1.1"), (AGENTS_PORT, "h2")])
def test_s_client_verifies_the_server(server: Server, client: EstClient, port: int, protocol: str) -> None:
    output = client.openssl(
        *("s_client", "-connect", f"{server.address}:{port}", "-CAfile", str(client.roots), "-tls1_3"),
        *("-verify_return_error", "-verify_ip", server.address, "-x509_strict", "-alpn", protocol),
        *("-cert", str(server.user_bundle), "-key", str(server.user_bundle), "-purpose", "sslserver"),
        *("-cert_chain", str(server.user_bundle)),  # -cert alone sends the leaf, which the server refuses
        "-ignore_unexpected_eof",  # gRPC ends a connection without close_notify
    )
    assert "Verify return code: 0 (ok)" in output
    assert "TLSv1.3" in output
    assert f"ALPN protocol: {protocol}" in output
    assert len(re.findall("BEGIN CERTIFICATE", output)) == 1, "the leaf is shown"
    assert re.search(r"^ 1 s:", output, re.MULTILINE), "and its issuer is sent along"


def test_the_foreign_clients_certificate_works_for_a_real_agent(
    server: Server, client: EstClient, home: HomeMaker
) -> None:
    node = "est-agent"
    request = client.make_request("agent", f"/CN={node}")
    leaf = client.keep("agent", client.enrol(request, server.token(node)))
    told = client.blocks(client.certificates(client.curl("cacerts", "--cacert", str(client.roots))))
    machine = home(node)
    write_bundle(
        machine.bundle,
        Bundle(
            SpiffeId(server.trust_domain, Role.NODE, node),
            client.openssl("pkcs8", "-topk8", "-nocrypt", "-in", str(client.folder / "agent.key")).encode(),
            "".join([*client.blocks(leaf.read_text()), *filter(_is_intermediate(client), told)]).encode(),
            client.roots.read_bytes(),
            (f"{server.address}:{AGENTS_PORT}",),
            (f"{server.address}:{HTTPS_PORT}",),
        ),
    )
    machine.configure(server, allow=[f"localhost:{ECHO}"])
    machine.start()
    with server.connect(f"{node}:{ECHO}") as answer:
        assert answer.status == 200, answer.phrase
        assert answer.echoes(b"by a foreign hand")


def _is_intermediate(client: EstClient) -> Callable[[str], bool]:
    def is_intermediate(certificate: str) -> bool:
        output = client.openssl("x509", "-noout", "-subject", "-issuer", stdin=certificate)
        subject, issuer = (line.partition("=")[2] for line in output.splitlines())
        return subject != issuer

    return is_intermediate
