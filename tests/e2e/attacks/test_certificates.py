"""Certificates renewed for a longer time, renewals that outlive a revocation, and tokens used twice."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certs.bundle import format_bundle, read_bundle, split_pem
from certs.pkcs7 import read_certs_only
from certs.requests import make_request, request_for
from certs.signing import private_pem
from certs.x509 import describe, facts_of
from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.ground import Ground
from tests.server.entrances.test_est import basic
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until
from tunnel_core.identity import Role, SpiffeId

DAY = 24 * 3600.0
BACK_DATED_SECONDS = 3600.0
FLOOD_SECONDS = 3.0
FLOODERS = 4


class EstClient:
    """One HTTPS connection to the port of nodes and users, kept alive. ``own``: a bundle to show."""

    def __init__(self, ground: Ground, own: Path | None = None) -> None:
        context = ssl.create_default_context(cafile=str(ground.server.trust_file))
        if own is not None:
            context.load_cert_chain(own)
        self._connection = http.client.HTTPSConnection(
            ground.address, ground.https_port, timeout=20, context=context
        )

    def post(self, operation: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        fields = {"Content-Type": "application/pkcs10", **headers}
        self._connection.request("POST", f"/.well-known/est/{operation}", body, fields)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._connection.close()


def renewed(ground: Ground, own: Path, to: Path) -> Path:
    """Return the renewal that the holder of ``own`` gets, as a bundle."""
    bundle = read_bundle(own)
    key = ec.generate_private_key(ec.SECP256R1())
    client = EstClient(ground, own)
    status, body = client.post("simplereenroll", request_for(key, bundle.identity).body)
    client.close()
    assert status == 200, body
    (leaf,) = read_certs_only(body)
    issuing = b"".join(split_pem(bundle.chain_pem)[1:])
    next_one = replace(bundle, chain_pem=leaf + issuing, key_pem=private_pem(key))
    to.write_bytes(format_bundle(next_one))
    to.chmod(0o600)
    return to


def life(bundle: Path) -> float:
    description = describe(read_bundle(bundle).chain_pem)
    return (description.ends - description.begins).total_seconds() - BACK_DATED_SECONDS


def serial(bundle: Path) -> str:
    return facts_of(read_bundle(bundle).chain_pem).serial


@pytest.mark.parametrize("role", ["user", "node"])
def test_a_day_does_not_become_a_month(site: Ground, tmp_path: Path, role: str) -> None:
    own = tmp_path / "0.pem"
    site.server.command_line("issue", role, "contractor", "--days", "1", "--out", str(own))
    for number in (1, 2):
        own = renewed(site, own, tmp_path / f"{number}.pem")
        assert DAY - 60 < life(own) <= DAY + 1


def test_renewals_of_a_stolen_certificate_are_revoked_with_it(
    site: Ground, echo: Echo, tmp_path: Path
) -> None:
    stolen = site.server.issue_user("mallory", tmp_path / "stolen.pem")
    hidden = renewed(site, renewed(site, stolen, tmp_path / "1.pem"), tmp_path / "2.pem")
    with echo.measured() as under:
        stream = site.connect_tls(ECHO, identity=hidden)
        assert stream.status == 200 and stream.echoes(b"still here")
        output = site.server.command_line("cert", "revoke", serial(stolen), "--yes")
        assert "2 certificates renewed from it" in output
        wait_until(lambda: _is_over(stream.socket), "the stream of the renewal to end", deadline_seconds=5)
        assert site.connect_tls(ECHO, identity=hidden).status == 403
    under.require(echo.rest)
    listed = site.server.command_line("cert", "list", "--user", "mallory", "--wide")
    assert listed.count(" revoked ") == 3


def _is_over(connection: ssl.SSLSocket) -> bool:
    try:
        return connection.recv(1) == b""
    except OSError:
        return True


def test_used_tokens_delay_no_other_user(site: Ground, echo: Echo) -> None:
    spent = site.server.token("spent")
    identity = SpiffeId(site.server.trust_domain, Role.NODE, "spent")
    first = EstClient(site)
    assert (
        first.post("simpleenroll", make_request(identity).body, Authorization=basic("spent", spent))[0] == 200
    )
    body, ends = make_request(identity).body, time.monotonic() + FLOOD_SECONDS
    refused: list[int] = []

    def flood() -> None:
        client = EstClient(site)
        while time.monotonic() < ends:
            status, body_of_answer = client.post("simpleenroll", body, Authorization=basic("spent", spent))
            assert (status, body_of_answer.partition(b":")[0]) == (403, b"token_replayed")
            refused.append(status)
        client.close()

    flooders = [threading.Thread(target=flood) for _ in range(FLOODERS)]
    with echo.measured() as under:
        for flooder in flooders:
            flooder.start()
        fresh = site.server.token("fresh")
        other = make_request(SpiffeId(site.server.trust_domain, Role.NODE, "fresh")).body
        assert first.post("simpleenroll", other, Authorization=basic("fresh", fresh))[0] == 200
        for flooder in flooders:
            flooder.join()
    first.close()
    assert len(refused) > FLOODERS
    under.require(echo.rest)
    given = site.server.ask("/api/v1/admin/certificates?role=node")["certificates"]
    assert [one["name"] for one in given].count("spent") == 1
