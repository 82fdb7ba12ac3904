"""Certificates over EST by Python's own HTTP client, once by curl and openssl, and requests to refuse."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs.ca import Leaf, create_authority
from certs.pkcs7 import read_certs_only
from certs.requests import make_request
from certs.signing import LeafProfile, make_leaf
from certs.token import Token, format_token
from certs.x509 import Usage, Validity, describe, facts_of
from tests.support.pki import authority as pki
from tests.support.pki.asking import Answer, EstRequest, ask
from tests.support.pki.issuing import Issuing, open_issuing
from tests.support.processes.tools_here import need
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.listeners.admission import Ticket
from tunnel_server.pki.enrolment.enrolment import Requester

EST = "/.well-known/est"
PKCS10 = "application/pkcs10"


async def run(*command: str, data: bytes = b"") -> bytes:
    """Return the standard output of a program, which must succeed."""
    ran = await trio.run_process(command, stdin=data, capture_stdout=True, capture_stderr=True, check=False)
    assert ran.returncode == 0, (command, ran.stderr)
    output: bytes = ran.stdout
    return output


async def get(issuing: Issuing, path: str, leaf: Leaf | None = None) -> Answer:
    return await ask(issuing, EstRequest("GET", path, own=own_file(issuing, leaf)))


async def post(
    issuing: Issuing,
    operation: str,
    body: bytes | Iterator[bytes],
    *,
    kind: str = PKCS10,
    own: Path | None = None,
    **headers: str,
) -> Answer:
    fields = {"Content-Type": kind} | headers
    return await ask(issuing, EstRequest("POST", f"{EST}/{operation}", body, fields, own))


def basic(user: str, password: str) -> str:
    """The value of ``Authorization``."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def own_file(issuing: Issuing, leaf: Leaf | None) -> Path | None:
    """A file with the key and chain of ``leaf``; None without a leaf."""
    if leaf is None:
        return None
    file = issuing.folder / f"{facts_of(leaf.chain_pem).identity.name}.pem"
    file.write_bytes(leaf.credential.key_pem + leaf.chain_pem)
    return file


async def enrol(issuing: Issuing, token: Token | str, body: bytes, user: str = "edge1") -> Answer:
    text = token if isinstance(token, str) else format_token(token)
    return await post(issuing, "simpleenroll", body, Authorization=basic(user, text))


async def renew(issuing: Issuing, leaf: Leaf, body: bytes) -> Answer:
    return await post(issuing, "simplereenroll", body, own=own_file(issuing, leaf))


def identity(name: str, role: Role = Role.NODE) -> SpiffeId:
    return SpiffeId(pki.TRUST_DOMAIN, role, name)


def request_of(name: str = "edge1", role: Role = Role.NODE) -> bytes:
    return make_request(identity(name, role)).body


# As the RFC has it.


@pytest.fixture
def curl_and_openssl() -> None:
    """Skip the test, and name the missing program. Inside a trio test that sentence would be lost."""
    need("curl", "openssl")


@pytest.mark.usefixtures("curl_and_openssl")
async def test_curl_and_openssl_enrol_and_renew(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = await issuing.token("edge1")
        one = await openssl_request(tmp_path, "one", "/CN=edge1")
        answer = await curl_post(issuing, "simpleenroll", one, "--user", f"any:{format_token(token)}")
        assert (answer.status, answer.headers["content-transfer-encoding"]) == (200, "base64")
        assert answer.headers["content-type"] == "application/pkcs7-mime; smime-type=certs-only"
        first = await openssl_certificates(tmp_path, "one", answer.body)
        await verify_with_openssl(issuing, tmp_path, first)
        two = await openssl_request(tmp_path, "two", "/CN=edge1")
        shown = ["--cert", str(first), "--key", str(tmp_path / "one.key")]
        answer = await curl_post(issuing, "simplereenroll", two, *shown)
        second = await openssl_certificates(tmp_path, "two", answer.body)
        await verify_with_openssl(issuing, tmp_path, second)
        output = facts_of(second.read_bytes())
        assert (output.identity, output.serial != facts_of(first.read_bytes()).serial) == (
            identity("edge1"),
            True,
        )
        assert [line[0] for line in await issuing.audit()] == ["enrolled", "renewed"]
        assert [one["serial"] for one in await issuing.store.certificates(name="edge1")][-1] == output.serial


async def curl_post(issuing: Issuing, operation: str, body: bytes, *options: str) -> Answer:
    """One request with curl, which trusts the server's root alone."""
    file = issuing.folder / "body"
    file.write_bytes(body)
    port = issuing.address.rpartition(":")[2]
    posted = ["-H", f"Content-Type: {PKCS10}", "--data-binary", f"@{file}", *options]
    trusting = ["--cacert", str(issuing.roots), "--max-time", "15"]
    url = f"https://localhost:{port}{EST}/{operation}"
    got = await run("curl", "-sS", "-i", *trusting, *posted, url)
    head, _, content = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), headers, content)


async def openssl_request(folder: Path, name: str, subject: str) -> bytes:
    key, csr = folder / f"{name}.key", folder / f"{name}.csr"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    await run("openssl", "req", "-new", *curve, "-keyout", str(key), "-subj", subject, "-outform", "DER",
              "-out", str(csr))  # fmt: skip
    return await run("openssl", "base64", "-in", str(csr))


async def openssl_certificates(folder: Path, name: str, body: bytes) -> Path:
    der = await run("openssl", "base64", "-d", data=body)
    pem = folder / f"{name}.pem"
    printed = await run("openssl", "pkcs7", "-inform", "DER", "-print_certs", data=der)
    pem.write_bytes(printed[printed.index(b"-----BEGIN") :])
    return pem


async def verify_with_openssl(issuing: Issuing, folder: Path, leaf: Path) -> None:
    answer = await get(issuing, f"{EST}/cacerts")
    given = await openssl_certificates(folder, "cacerts", answer.body)
    options = [
        "-CAfile",
        str(issuing.roots),
        "-untrusted",
        str(given),
        "-purpose",
        "sslclient",
        "-x509_strict",
    ]
    await run("openssl", "verify", *options, str(leaf))


CSR_ATTRIBUTES = bytes.fromhex(
    "3021"  # a SEQUENCE, RFC 7030 section 4.5.2
    "301506072a8648ce3d0201310a06082a8648ce3d030107"  # id-ecPublicKey: prime256v1
    "06082a8648ce3d040302"  # ecdsa-with-SHA256
)


async def test_paths_without_authentication(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        answer = await get(issuing, f"{EST}/cacerts")
        authority = pki.authority()
        assert set(read_certs_only(answer.body)) == {authority.roots_pem, authority.issuing.certificate_pem}
        answer = await get(issuing, f"{EST}/csrattrs")
        assert base64.b64decode(answer.body) == CSR_ATTRIBUTES
        page = json.loads((await get(issuing, "/api/v1/join")).body)
        assert (page["trust_domain"], page["agents"]) == (pki.TRUST_DOMAIN, ["localhost:7001"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", page["time"])
        assert datetime.datetime.fromisoformat(page["time"]).tzinfo is not None, "so do older agents read it"


@pytest.mark.parametrize("path", ["/api/v1/nodes", "/api/v1/joins", "/.well-known/estate", "/.well-known/"])
async def test_other_paths_need_authentication(tmp_path: Path, path: str) -> None:
    async with open_issuing(tmp_path) as issuing:
        answer = await get(issuing, path)
        assert (answer.status, answer.word) == (401, "unauthenticated")
        assert "www-authenticate" not in answer.headers


async def test_a_node_may_renew_and_nothing_else(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        answer = await renew(issuing, pki.node_leaf("edge1"), request_of())
        (leaf,) = read_certs_only(answer.body)
        assert facts_of(leaf).identity == identity("edge1")
        answer = await get(issuing, "/api/v1/nodes", pki.node_leaf("edge1"))
        assert (answer.status, answer.word) == (403, "wrong_role")


async def test_a_users_renewal_has_the_validity_of_users(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        answer = await renew(issuing, pki.user_leaf("kim"), request_of("kim", Role.USER))
        (leaf,) = read_certs_only(answer.body)
        description = describe(leaf)
        assert description.uris == (str(identity("kim", Role.USER)),)
        assert 3600 + 1700 < (description.ends - description.begins).total_seconds() <= 3600 + 1800
        assert await issuing.audit() == [("renewed", "", "kim")]


async def test_the_same_key_and_token_are_the_same_use(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        token, body = await issuing.token(), request_of()
        first, again = await enrol(issuing, token, body), await enrol(issuing, token, body)
        assert (first.status, again.status) == (200, 200)
        assert [one["used"] for one in await issuing.store.tokens()] == [1]
        replayed = await enrol(issuing, token, request_of())
        assert (replayed.status, replayed.word) == (403, "token_replayed")


# What is refused.


async def test_a_request_without_token_gets_the_way_to_log_in(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic %%%"}):
            answer = await post(issuing, "simpleenroll", request_of(), **headers)
            assert (answer.status, answer.word) == (401, "token_wrong")
            assert answer.headers["www-authenticate"].startswith("basic realm=")


async def test_a_token_that_is_wrong(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = await issuing.token("edge1")
        text = format_token(token)
        other_pin = format_token(Token(token.id, token.secret, bytes(32)))
        for wrong in (text[:-1] + ("a" if text[-1] != "a" else "b"), "secret", other_pin):
            answer = await enrol(issuing, wrong, request_of())
            assert (answer.status, answer.word) == (401, "token_wrong")
            assert wrong.encode() not in answer.body
        assert await issuing.audit() == [("refused", "token_wrong", "edge1")] * 3
        assert [one["used"] for one in await issuing.store.tokens()] == [0]


async def test_wrong_tokens_are_limited_and_a_right_one_is_not(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        token, wrong = await issuing.token("edge1"), format_token(Token("a" * 16, bytes(20), bytes(32)))
        answers = [await enrol(issuing, wrong, b"") for _ in range(25)]
        limited = [answer for answer in answers if answer.status == 429]
        assert 1 <= len(limited) <= 5
        assert limited[0].word == "too_many_guesses"
        assert 1 <= int(limited[0].headers["retry-after"]) <= 6
        assert (await enrol(issuing, token, request_of())).status == 200
        refused = [line for line in await issuing.audit() if line[0] == "refused"]
        assert len(refused) == 25 - len(limited)


@pytest.mark.parametrize("operation", ["simpleenroll", "simplereenroll"])
async def test_a_body_that_is_no_request(tmp_path: Path, operation: str) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = format_token(await issuing.token("edge1"))
        own, login = own_file(issuing, pki.node_leaf("edge1")), basic("edge1", token)
        cases = [
            (b"no", PKCS10, "bad_csr"),
            (b"A" * 20_000, PKCS10, "bad_csr"),
            (request_of(), "text/plain", "bad_csr"),
        ]
        for body, kind, word in cases:
            answer = await post(issuing, operation, body, kind=kind, own=own, Authorization=login)
            assert (answer.status, answer.word) == (400, word)
        assert [one["used"] for one in await issuing.store.tokens()] == [0]


def odd_request(*extensions: x509.ExtensionType, curve: ec.EllipticCurve | None = None) -> bytes:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge1")])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    return base64.encodebytes(der)


def uri(text: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(text)])


MISMATCH = (403, "csr_name_mismatch", "csr_name_mismatch")
BAD = (400, "bad_csr", "bad_csr")
MAIL = x509.SubjectAlternativeName([x509.RFC822Name("a@b.c")])
ODD = {
    "another node": (request_of("edge2"), 403, "csr_name_mismatch", "token_name_mismatch"),
    "a user": (odd_request(uri("spiffe://test.internal/user/edge1")), *MISMATCH),
    "another domain": (odd_request(uri("spiffe://other/node/edge1")), *MISMATCH),
    "dots": (odd_request(uri("spiffe://test.internal/node/../node/edge1")), *MISMATCH),
    "an authority": (odd_request(x509.BasicConstraints(True, None)), *BAD),
    "a mail address": (odd_request(MAIL), *BAD),
    "a weak key": (odd_request(curve=ec.SECP192R1()), 400, "weak_key", "weak_key"),
}
"""Content of a request of edge1 beside its name, the status, the word at a renewal and at an enrolment."""


async def test_a_refusal_of_the_holder_of_a_token_or_certificate_is_logged_as_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = await issuing.token("edge1")
        assert (await enrol(issuing, token, request_of("edge2"))).word == "token_name_mismatch"
        assert (await renew(issuing, pki.node_leaf("edge1"), request_of("edge2"))).word == "csr_name_mismatch"
        assert (await enrol(issuing, "secret", request_of())).word == "token_wrong"
    logged = [
        (record.getMessage(), {key: record.fields.get(key) for key in ("token", "node", "reason")})  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name == "qanat.refusals"
    ]
    known, stranger = "request refused", "refused before authentication"
    assert logged == [
        (known, {"token": token.id, "node": "edge1", "reason": "token_name_mismatch"}),
        (known, {"token": None, "node": "edge1", "reason": "csr_name_mismatch"}),
        (stranger, {"token": None, "node": None, "reason": "token_wrong"}),
    ]


@pytest.mark.parametrize("case", ODD)
async def test_a_request_that_asks_for_more(tmp_path: Path, case: str) -> None:
    body, status, at_renewal, at_enrolment = ODD[case]
    async with open_issuing(tmp_path) as issuing:
        token = await issuing.token("edge1")
        answer = await enrol(issuing, token, body)
        assert (answer.status, answer.word) == (status, at_enrolment)
        answer = await renew(issuing, pki.node_leaf("edge1"), body)
        assert (answer.status, answer.word) == (status, at_renewal)
        assert [line[:2] for line in await issuing.audit()] == [
            ("refused", at_enrolment),
            ("refused", at_renewal),
        ]
        assert [one["used"] for one in await issuing.store.tokens()] == [0]
        assert not await issuing.store.certificates()


async def test_a_request_without_certificate_does_not_renew(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = format_token(await issuing.token("edge1"))
        answer = await post(issuing, "simplereenroll", request_of(), Authorization=basic("edge1", token))
        assert (answer.status, answer.word) == (401, "unauthenticated")


async def test_the_revoked_do_not_renew(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        await issuing.store.revoke(RevocationKind.NODE, "edge1", "test")
        answer = await renew(issuing, pki.node_leaf("edge1"), request_of())
        assert (answer.status, answer.word) == (403, "revoked")
        assert (await issuing.audit())[-1] == ("refused", "revoked", "edge1")
        assert issuing.edge.audit == []  # one line for one refusal


async def test_a_refused_token_is_one_line_of_the_audit(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = await issuing.token("edge1")
        await issuing.store.revoke(RevocationKind.NODE, "edge1", "test")
        answer = await enrol(issuing, token, request_of())
        assert (answer.status, answer.word) == (403, "revoked")
        assert [line for line in await issuing.audit() if line[0] == "refused"] == [
            ("refused", "revoked", "edge1")
        ]
        assert issuing.edge.audit == []


async def test_a_connection_that_was_kept_alive_does_not_renew_what_has_ended(tmp_path: Path) -> None:
    made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
    leaf = pki.authority().issue(Role.NODE, "edge1", days=1, now=made)
    async with open_issuing(tmp_path) as issuing:
        with pytest.raises(Refused) as caught:
            await issuing.enrolment.renew(leaf.credential.certificate_pem, b"", Requester("", ""))
        assert caught.value.reason is Reason.CERTIFICATE_EXPIRED
        assert await issuing.audit() == [("refused", "certificate_expired", "edge1")]


def odd_leaf(identity: SpiffeId) -> Leaf:
    """For TLS clients, of any identity, by an issuer that the server trusts."""
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    authority = pki.authority()
    made = make_leaf(authority.issuing, LeafProfile(identity, Usage.CLIENT, Validity(now - day, now + day)))
    return Leaf(made, made.certificate_pem + authority.issuing.certificate_pem, authority.roots_pem)


@pytest.mark.parametrize(
    ("who", "word"),
    [
        (SpiffeId(pki.TRUST_DOMAIN, Role.SERVER, "main"), "wrong_role"),
        (SpiffeId("other.internal", Role.NODE, "edge1"), "wrong_trust_domain"),
    ],
)
async def test_a_foreign_certificate_that_tls_accepts_does_not_renew(
    tmp_path: Path, who: SpiffeId, word: str
) -> None:
    async with open_issuing(tmp_path) as issuing:
        answer = await renew(issuing, odd_leaf(who), request_of())
        assert (answer.status, answer.word) == (403, word)
        assert await issuing.audit() == [("refused", word, "")]


@pytest.mark.parametrize("role", [Role.NODE, Role.USER])
async def test_certificates_of_roots_for_users_are_not_renewed(tmp_path: Path, role: Role) -> None:
    """Otherwise their issuer could have a node's certificate of this server, or one that outlives trust."""
    others = create_authority(pki.TRUST_DOMAIN).authority
    theirs = others.issue(role, "edge1")
    chained = Leaf(theirs.credential, theirs.chain_pem, pki.authority().roots_pem)
    async with open_issuing(tmp_path, user_roots=others.roots_pem, renews_only_own=True) as issuing:
        body = request_of("edge1", role) if role is Role.USER else request_of()
        answer = await renew(issuing, chained, body)
        assert (answer.status, answer.word) == (403, "wrong_role")
        assert [(kind, word) for kind, word, _ in await issuing.audit()] == [("refused", "wrong_role")]
        assert (await renew(issuing, pki.node_leaf("edge1"), request_of())).status == 200


async def test_beyond_the_cap_the_answer_has_a_retry_time(tmp_path: Path) -> None:
    async with (
        open_issuing(tmp_path, serves=False, max_at_once=1) as issuing,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(renew, issuing, pki.node_leaf("edge1"), request_of())  # waits for the store
        while not issuing.enrolment.present:  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.01)
        answer = await renew(issuing, pki.node_leaf("edge2"), request_of("edge2"))
        assert (answer.status, answer.word) == (503, "too_many_enrolments")
        assert int(answer.headers["retry-after"]) == 2
        nursery.cancel_scope.cancel()


async def test_requests_of_one_name_are_limited(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        body = request_of()
        statuses = [(await renew(issuing, pki.node_leaf("edge1"), body)).status for _ in range(12)]
        assert statuses[:10] == [200] * 10
        assert 503 in statuses
        assert (await renew(issuing, pki.node_leaf("edge2"), request_of("edge2"))).status == 200


async def test_a_body_in_pieces_is_taken_and_a_slow_one_is_not(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        body, login = request_of(), basic("edge1", format_token(await issuing.token("edge1")))
        pieces = (body[start : start + 100] for start in range(0, len(body), 100))
        chunked = {"Transfer-Encoding": "chunked", "Expect": "100-continue", "Authorization": login}
        assert (await post(issuing, "simpleenroll", pieces, **chunked)).status == 200


async def test_ten_bodies_that_never_come_delay_no_other_request(tmp_path: Path) -> None:
    async with open_issuing(tmp_path, max_at_once=1) as issuing:
        host, _, port = issuing.address.rpartition(":")
        context = ssl.create_default_context(cafile=issuing.roots)
        fields = f"Host: x\r\nContent-Type: {PKCS10}\r\nContent-Length: 9\r\n\r\n"
        head = f"POST {EST}/simpleenroll HTTP/1.1\r\n{fields}"
        streams = []
        for _ in range(10):
            plain = await trio.open_tcp_stream(host, int(port))
            streams.append(trio.SSLStream(plain, context, server_hostname="localhost"))
            await streams[-1].send_all(head.encode())
        assert (await enrol(issuing, await issuing.token("edge1"), request_of())).status == 200
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_a_request_that_is_worked_on_does_not_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def at_work(_: Ticket) -> Iterator[None]:
        steps.append("begin")
        yield
        steps.append("end")

    async def refuse(*_: object) -> None:
        steps.append("work")
        raise Refused(Reason.TOKEN_WRONG)

    monkeypatch.setattr(Ticket, "at_work", at_work)
    async with open_issuing(tmp_path) as issuing:
        for operation in ("enrol", "renew"):
            monkeypatch.setattr(issuing.enrolment, operation, refuse)
        await post(issuing, "simpleenroll", request_of())
        await post(issuing, "simplereenroll", request_of(), own=own_file(issuing, pki.node_leaf("edge1")))
    assert " ".join(steps).count("begin work") == 2
