"""Wrong identities and requests beyond an identity's rights: refused with the right reason, and audited.

The list here is complete. The server's own tests prove these as well:
``tests/server/entrances/test_est`` (requests and tokens),
``tests/server/entrances/test_https_revoked``,
``tests/server/nodes/test_attach_revoked``
and ``tests/server/auth/test_credential_watch`` (what must end),
``tests/server/accounting/test_refusal_audit`` (the lines),
``tests/server/store/test_tokens_model`` (races for a token);
of the agent's: ``tests/agent/join/test_first_contact``.

An attacker that fails in the TLS handshake of the agents' port sees a lost connection; the audit has the
reason.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.token import format_token, parse_token
from tests.e2e.identity.attacking import Attacker
from tests.e2e.identity.conftest import HomeMaker
from tests.e2e.identity.forging import strangers_authority
from tests.e2e.identity.middle import Middle
from tests.support.net.namespaces import Network
from tests.support.processes.programs import HTTPS_PORT, Server
from tests.support.processes.site import ECHO

YEAR = datetime.timedelta(days=365)
API = "GET /api/v1/nodes"
CONNECT = f"CONNECT shop-1:{ECHO}"
URI = "subjectAltName=URI:spiffe://qanat.internal"
CLAIMS = (
    "X-Forwarded-Client-Cert: Hash=00;URI=spiffe://qanat.internal/user/operator",
    "X-Spiffe-Id: spiffe://qanat.internal/user/operator",
    "X-Remote-User: operator",
    "Qanat-User: operator",
    "Authorization: Basic b3BlcmF0b3I6",
)
PATHS = {
    "dots": "node/..",
    "dots_encoded": "node/%2e%2e",
    "upper_case": "node/Shop-1",
    "nul": "node/shop-1\0",
    "300_characters": f"node/{'a' * 300}",
    "one_more_part": "node/shop-1/x",
    "no_name": "node/",
}


@dataclass(frozen=True)
class Attack:
    """``try_it`` returns the reason that the attacker receives; ``line`` is the audit's, "" if the same."""

    name: str
    try_it: Callable[[Attacker], str]
    reason: str
    line: str = ""


# Requests for certificates: with a token, with a certificate.


def _token(attacker: Attacker, node: str = "shop-1", **more: object) -> str:
    return attacker.server.token(node, **more)


def _asks_with_a_token(subject: str, *options: str, user: str = "shop-1") -> Callable[[Attacker], str]:
    return lambda attacker: attacker.enrol(_token(attacker), subject, *options, user=user)


def _renews(subject: str, *options: str) -> Callable[[Attacker], str]:
    return lambda attacker: attacker.renew(attacker.node("shop-1"), subject, *options)


def _with_key(*key: str) -> Callable[[Attacker], str]:
    return lambda attacker: attacker.enrol(_token(attacker), "/CN=shop-1", key=key)


def _signature_of_another_key(attacker: Attacker) -> str:
    made = attacker.est.make_request("attack", "/CN=shop-1")
    data = bytearray(made.read_bytes())
    data[-4] ^= 1
    made.write_bytes(data)
    return attacker.est.enrol(made, _token(attacker), "shop-1").reason


def _another_pin(attacker: Attacker) -> str:
    right = parse_token(_token(attacker))
    return attacker.enrol(format_token(replace(right, pin=bytes(32))), "/CN=shop-1")


def _used_up(attacker: Attacker) -> str:
    many = _token(attacker, "", match="once-*", uses=1)
    assert attacker.enrol(many, "/CN=once-1") == ""
    return attacker.enrol(many, "/CN=once-2")


def _replayed(attacker: Attacker) -> str:
    once = _token(attacker, "replayed")
    assert attacker.enrol(once, "/CN=replayed") == ""
    return attacker.enrol(once, "/CN=replayed")


def _expired_token(attacker: Attacker) -> str:
    short = _token(attacker, ttl_seconds=1)
    time.sleep(1.1)  # its life is the server's to measure
    return attacker.enrol(short, "/CN=shop-1")


def _revoked_token(attacker: Attacker) -> str:
    text = _token(attacker)
    attacker.server.tell("tokens/revoke", id=parse_token(text).id)
    return attacker.enrol(text, "/CN=shop-1")


def _older_than_the_revocation(attacker: Attacker) -> str:
    before = _token(attacker, "thrown-1")
    attacker.server.tell("nodes/revoke", name="thrown-1", force=True)
    return attacker.enrol(before, "/CN=thrown-1")


def _pattern_after_the_revocation(attacker: Attacker) -> str:
    attacker.server.tell("nodes/revoke", name="thrown-2", force=True)
    return attacker.enrol(_token(attacker, "", match="thrown-*"), "/CN=thrown-2")


def _revoked_renews(attacker: Attacker) -> str:
    bundle = attacker.node("thrown-3")
    attacker.server.tell("nodes/revoke", name="thrown-3", force=True)
    return attacker.renew(bundle, "/CN=thrown-3")


REQUESTS = [
    Attack("a_token_of_one_with_a_request_for_another",
           _asks_with_a_token("/CN=shop-2"), "token_name_mismatch"),
    Attack("the_same_by_the_uri",
           _asks_with_a_token("/", "-addext", f"{URI}/node/shop-2"), "token_name_mismatch"),
    Attack("common_name_and_uri_differ",
           _asks_with_a_token("/CN=shop-2", "-addext", f"{URI}/node/shop-1"), "csr_name_mismatch"),
    Attack("renews_as_another", _renews("/CN=shop-2"), "csr_name_mismatch"),
    Attack("renews_as_another_by_the_uri",
           _renews("/", "-addext", f"{URI}/node/shop-2"), "csr_name_mismatch"),
    Attack("renews_as_a_user", _renews("/", "-addext", f"{URI}/user/shop-1"), "csr_name_mismatch"),
    Attack("renews_as_a_server", _renews("/", "-addext", f"{URI}/server/main"), "csr_name_mismatch"),
    Attack("one_more_dns_name",
           _asks_with_a_token("/CN=shop-1", "-addext", "subjectAltName=DNS:shop-1,DNS:evil"),
           "csr_name_mismatch"),
    Attack("one_more_uri", _asks_with_a_token(
        "/CN=shop-1", "-addext", f"{URI}/node/shop-1,URI:spiffe://qanat.internal/user/operator"),
        "csr_name_mismatch"),
    Attack("an_address",
           _asks_with_a_token("/CN=shop-1", "-addext", "subjectAltName=IP:10.201.0.1"), "bad_csr"),
    Attack("an_email", _asks_with_a_token("/CN=shop-1", "-addext", "subjectAltName=email:a@b.c"), "bad_csr"),
    Attack("an_authority",
           _asks_with_a_token("/CN=shop-1", "-addext", "basicConstraints=critical,CA:TRUE"), "bad_csr"),
    Attack("a_key_that_signs_certificates",
           _asks_with_a_token("/CN=shop-1", "-addext", "keyUsage=keyCertSign"), "bad_csr"),
    Attack("a_short_rsa_key", _with_key("-newkey", "rsa:1024"), "weak_key"),
    Attack("a_curve_that_is_not_ours",
           _with_key("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"), "weak_key"),
    Attack("an_old_digest", _asks_with_a_token("/CN=shop-1", "-sha1"), "weak_key"),
    Attack("the_signature_of_another_key", _signature_of_another_key, "bad_csr"),
    Attack("a_token_with_another_pin", _another_pin, "token_wrong"),
    Attack("an_expired_token", _expired_token, "token_expired"),
    Attack("a_used_up_token", _used_up, "token_used_up"),
    Attack("a_replayed_token", _replayed, "token_replayed"),
    Attack("a_revoked_token", _revoked_token, "token_revoked"),
    Attack("a_token_older_than_the_revocation", _older_than_the_revocation, "revoked"),
    Attack("a_pattern_for_a_revoked_name", _pattern_after_the_revocation, "revoked"),
    Attack("the_revoked_renews", _revoked_renews, "revoked"),
    Attack("renews_without_a_certificate", lambda attacker: attacker.est.post(
        "simplereenroll", attacker.est.make_request("attack", "/CN=shop-1")).reason, "unauthenticated"),
    Attack("a_user_of_another_domain_renews", lambda attacker: attacker.renew(
        attacker.forger.bundle("kim", "spiffe://elsewhere/user/kim"), "/CN=kim"), "wrong_trust_domain"),
]  # fmt: skip


# The HTTPS port.


def _shown(uri: str, request: str = API, *headers: str, **how: object) -> Callable[[Attacker], str]:
    return lambda attacker: attacker.ask(request, attacker.forger.bundle("shown", uri, **how), *headers)


def _strangers(role: str) -> Callable[[Attacker], Path]:
    def make(attacker: Attacker) -> Path:
        authority = strangers_authority(attacker.server.trust_domain)
        return attacker.forger.bundle("strangers", f"{US}/{role}", authority=authority)

    return make


def _revoked_user(attacker: Attacker) -> str:
    bundle = attacker.user("fired")
    attacker.server.allow("fired")
    assert attacker.ask(API, bundle) == ""
    attacker.server.tell("users/revoke", name="fired", force=True)
    return attacker.ask(API, bundle)


US = "spiffe://qanat.internal"
SERVER_USAGE = {"usage": ExtendedKeyUsageOID.SERVER_AUTH}
DOORS = [
    Attack("a_node_connects", _shown(f"{US}/node/shop-1", CONNECT), "wrong_role"),
    Attack("a_node_asks_the_api", _shown(f"{US}/node/shop-1"), "wrong_role"),
    Attack("a_server_asks_the_api", _shown(f"{US}/server/main"), "wrong_role"),
    Attack("a_user_with_a_servers_usage", _shown(f"{US}/user/kim", **SERVER_USAGE), "tls", "wrong_role"),
    Attack("a_node_that_says_it_is_the_operator", _shown(f"{US}/node/shop-1", API, *CLAIMS), "wrong_role"),
    Attack("nobody", lambda attacker: attacker.ask(CONNECT, None), "unauthenticated"),
    Attack("nobody_who_says_he_is_the_operator",
           lambda attacker: attacker.ask(API, None, *CLAIMS), "unauthenticated"),
    Attack("a_user_of_another_domain", _shown("spiffe://elsewhere/user/kim"), "wrong_trust_domain"),
    Attack("a_user_of_another_authority",
           lambda attacker: attacker.ask(API, _strangers("user/kim")(attacker)), "tls", "unauthenticated"),
    Attack("an_expired_user",
           _shown(f"{US}/user/kim", begins=-YEAR, ends=-YEAR / 2), "tls", "certificate_expired"),
    Attack("a_user_of_the_future",
           _shown(f"{US}/user/kim", begins=YEAR / 2, ends=YEAR), "tls", "unauthenticated"),
    Attack("a_revoked_user", _revoked_user, "revoked"),
    *(Attack(f"path_{name}", _shown(f"{US}/{path}"), "unauthenticated") for name, path in PATHS.items()),
    Attack("no_path", _shown(US), "unauthenticated"),
    Attack("another_scheme", _shown("https://qanat.internal/user/kim"), "unauthenticated"),
]  # fmt: skip


# The agents' port.


def _attaches(uri: str, **how: object) -> Callable[[Attacker], str]:
    return lambda attacker: attacker.attach(attacker.forger.bundle("shown", uri, **how))


def _revoked_node(attacker: Attacker) -> str:
    bundle = attacker.node("stolen")
    assert attacker.attach(bundle) == ""
    attacker.server.tell("nodes/revoke", name="stolen", force=True)
    return attacker.attach(bundle)


def _revoked_serial(attacker: Attacker) -> str:
    bundle = attacker.node("one-of-two")
    output = attacker.est.openssl("x509", "-in", str(bundle), "-noout", "-serial")
    attacker.server.tell("certificates/revoke", serial=output.strip().partition("=")[2], force=True)
    other = attacker.forger.bundle("other", f"{US}/node/one-of-two")
    assert attacker.attach(other) == "", "another certificate of the same name is not meant"
    return attacker.attach(bundle)


ATTACHES = [
    Attack("a_user_attaches", _attaches(f"{US}/user/kim"), "wrong_role"),
    Attack("a_server_attaches", _attaches(f"{US}/server/main"), "wrong_role"),
    Attack("a_node_of_another_domain", _attaches("spiffe://elsewhere/node/shop-1"), "wrong_trust_domain"),
    Attack("a_revoked_node", _revoked_node, "revoked"),
    Attack("a_revoked_certificate", _revoked_serial, "revoked"),
    *(Attack(f"attaches_as_{name}", _attaches(f"{US}/{path}"), "unauthenticated")
      for name, path in PATHS.items()),
]  # fmt: skip
IN_THE_HANDSHAKE = [
    Attack("a_node_of_another_authority",
           lambda attacker: attacker.attach(_strangers("node/shop-1")(attacker)), "carrier_lost",
           "unauthenticated"),
    Attack("an_expired_node", _attaches(f"{US}/node/shop-1", begins=-YEAR, ends=-YEAR / 2), "carrier_lost",
           "certificate_expired"),
    Attack("a_node_of_the_future",
           _attaches(f"{US}/node/shop-1", begins=YEAR / 2, ends=YEAR), "carrier_lost", "unauthenticated"),
]  # fmt: skip


@pytest.fixture
def attacker(server: Server, network: Network, tmp_path: Path) -> Attacker:
    assert server.trust_domain == "qanat.internal"
    return Attacker(server, network, tmp_path)


@pytest.mark.parametrize(
    "attack", [*REQUESTS, *DOORS, *ATTACHES, *IN_THE_HANDSHAKE], ids=lambda attack: attack.name
)
def test_an_attack_is_refused_and_audited(attacker: Attacker, attack: Attack) -> None:
    assert attack.try_it(attacker) == attack.reason
    attacker.wait_line(attack.line or attack.reason)


def test_a_stolen_session_is_of_no_use(attacker: Attacker) -> None:
    thief, victim = attacker.node("thief"), attacker.forger.bundle("victim", f"{US}/node/victim")
    by_id, by_secret, wrong_secret, left = attacker.intrude("steal", thief, victim)
    assert (by_id["reason"], by_secret["reason"]) == ("session_mismatch", "session_mismatch")
    assert wrong_secret["reason"] == "session_mismatch"
    assert left["reason"] == "", "the victim notices nothing"
    line = attacker.wait_line("session_mismatch")
    assert line["node"] == "thief"


def test_a_request_without_a_token_gets_the_way_to_log_in(attacker: Attacker) -> None:
    """The audit has no line, because HTTP clients ask without a login first."""
    answer = attacker.est.post("simpleenroll", attacker.est.make_request("attack", "/CN=shop-1"))
    assert (answer.status, answer.reason) == (401, "token_wrong")
    assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("own_roots", [False, True], ids=["passes_the_roots_on", "tells_roots_of_his_own"])
def test_a_man_in_the_middle_learns_no_token(
    server: Server, network: Network, home: HomeMaker, tmp_path: Path, own_roots: bool
) -> None:
    evil = strangers_authority(server.trust_domain)
    middle = Middle(evil, (server.address, HTTPS_PORT), tmp_path, network.edge(1), own_roots=own_roots)
    token = server.token("between")
    with middle.listening():
        refused = home("between").try_join(middle.address, token)
    assert refused.returncode != 0
    assert ("does not know the root" if own_roots else "issued by") in refused.stdout, refused.stdout
    assert b"cacerts" in middle.received, "it was in between"
    assert b"authorization" not in bytes(middle.received).lower()
    assert token.encode() not in bytes(middle.received)
    assert home("between", 2).try_join(server, token).returncode == 0, "and the token is whole"


def test_a_certificate_of_a_root_that_was_retired(
    server: Server, attacker: Attacker, home: HomeMaker
) -> None:
    """The last test of the file: after it the server has another root."""
    old = home("old-root")
    old.join(server, server.token("old-root"))
    old.start()
    user, node = attacker.user("old-user"), attacker.node("old-node")
    server.allow("old-user")
    assert (attacker.ask(API, user), attacker.attach(node)) == ("", "")
    for step in ("add", "switch", "retire"):
        server.tell("ca/rotate", step=step, force=True)
    old.process.wait_log("root_retired", deadline_seconds=5)
    assert attacker.ask(API, user) == "tls"
    attacker.wait_line("unauthenticated")
    assert attacker.attach(node) == "carrier_lost"
    ended = [line for line in server.audit(node="old-root") if line["kind"] == "ended"]
    assert [line["reason"] for line in ended] == ["root_retired"]
