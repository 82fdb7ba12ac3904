"""The first contact: what a token's pin proves, the effect of wrong clocks, and servers in the middle."""

from __future__ import annotations

import datetime
import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from certs.ca import LOOPBACK_NAMES, create_authority
from certs.requests import make_request
from certs.token import Token
from certs.x509 import facts_of
from tests.support.net.listening import listening
from tests.support.net.relays import Relay
from tests.support.pki import authority as pki
from tests.support.pki.issuing import Issuing, open_issuing
from tunnel_agent.checks import CheckResult, Verdict, take_steps
from tunnel_agent.join.enrol import spend_token
from tunnel_agent.join.first_contact import Contact
from tunnel_agent.network import happy_eyeballs
from tunnel_agent.network.happy_eyeballs import Connected
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.network.server_path import ServerPath, agents_port, https_port
from tunnel_core.identity import Role, SpiffeId
from tunnel_server.pki.enrolment.signer import Signer

DAY = datetime.timedelta(days=1)
EDGE = SpiffeId(pki.TRUST_DOMAIN, Role.NODE, "edge1")


def utc() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def shifted(by: datetime.timedelta) -> Callable[[], datetime.datetime]:
    return lambda: utc() + by


def contact_with(issuing: Issuing, token: Token, port: int = 0) -> Contact:
    def path_to(address: str) -> ServerPath:
        return ServerPath(agents_port(address), "edge1", ProxyChoice(environment={}), 5.0, None)

    port = port or int(issuing.address.rpartition(":")[2])
    path = ServerPath(https_port(f"localhost:{port}"), "edge1", ProxyChoice(environment={}), 5.0, None)
    return Contact(path, token, path_to, utc)


UNTIL_PROVEN = ["dns", "tcp", "pin", "tls", "clock", "certificate"]


async def go_as_far_as_possible(contact: Contact) -> list[CheckResult]:
    findings: list[CheckResult] = []
    await take_steps(contact.steps(), findings.append)
    return findings


async def test_the_pin_verifies_the_server_before_anything_is_sent(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        contact = contact_with(issuing, await issuing.token())
        findings = await go_as_far_as_possible(contact)
        assert [f.step for f in findings if f.verdict is Verdict.PASS] == UNTIL_PROVEN
        assert findings[-1].step == "agents"  # no server is there in this test
        assert contact.roots == [pki.authority().roots_pem]


async def test_a_man_in_the_middle_with_the_true_roots_gets_no_token(tmp_path: Path) -> None:
    """The man in the middle passes on the public answers, pinned root included, with its own certificate."""
    own = create_authority(pki.TRUST_DOMAIN).authority.issue(Role.SERVER, "main", names=LOOPBACK_NAMES)
    async with open_issuing(tmp_path, leaf=own) as between:
        findings = await go_as_far_as_possible(contact_with(between, await between.token()))
        assert (findings[-1].step, findings[-1].verdict) == ("tls", Verdict.FAIL)
        assert "not by your CA" in findings[-1].detail
        assert findings[-2].step == "pin"


async def test_a_man_in_the_middle_with_other_roots_gets_no_further(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        token = await issuing.token()
        findings = await go_as_far_as_possible(
            contact_with(issuing, Token(token.id, token.secret, bytes(32)))
        )
        assert (findings[-1].step, findings[-1].verdict) == ("pin", Verdict.FAIL)
        assert "the token was not sent" in findings[-1].detail


async def test_the_name_that_was_asked_for_must_be_the_servers(tmp_path: Path) -> None:
    other = pki.authority().issue(Role.SERVER, "main", names=["elsewhere.example"])
    async with open_issuing(tmp_path, leaf=other) as issuing:
        findings = await go_as_far_as_possible(contact_with(issuing, await issuing.token()))
        assert (findings[-1].step, findings[-1].verdict) == ("tls", Verdict.FAIL)
        assert "is for elsewhere.example" in findings[-1].detail
        assert "init --name" in findings[-1].fix and "servers" not in findings[-1].fix


@pytest.mark.parametrize(
    ("by", "side"),
    [(20_000 * DAY, "behind"), (2 * DAY, "behind"), (-2 * DAY, "ahead of"), (-400 * DAY, "ahead of")],
    ids=["1970", "two days behind", "two days ahead", "a year ahead"],
)
async def test_a_clock_that_is_far_off_is_named_with_the_difference(
    tmp_path: Path, by: datetime.timedelta, side: str
) -> None:
    """The server's clock is ``by`` ahead of this machine's: its certificate is valid there, and not here."""
    then = utc() + by
    authority = create_authority(pki.TRUST_DOMAIN, now=then).authority
    shown = authority.issue(Role.SERVER, "main", names=LOOPBACK_NAMES, now=then)
    async with open_issuing(tmp_path, leaf=shown, wall=shifted(by)) as issuing:
        issuing.signers.append(Signer(authority))
        token = await issuing.token()
        contact = contact_with(issuing, Token(token.id, token.secret, authority.root_pin))
        findings = await go_as_far_as_possible(contact)
        assert (findings[-1].step, findings[-1].verdict) == ("clock", Verdict.FAIL)
        days = f"({abs(by).days}|{abs(by).days - 1}) d .*|55 years"
        assert re.search(rf"clock is ({days}) {side} that", findings[-1].detail)
        assert "timedatectl" in findings[-1].fix


async def test_a_busy_server_is_asked_again_at_its_retry_time(tmp_path: Path) -> None:
    async with open_issuing(tmp_path, max_at_once=0) as issuing:
        contact = contact_with(issuing, await issuing.token())
        await go_as_far_as_possible(contact)
        got: list[bytes] = []
        refusals = issuing.edge.counters.unauthenticated_refusals

        async def ask() -> None:
            got.append(await spend_token(contact, "edge1", make_request(EDGE)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not refusals["est", "too_many_enrolments"]:  # noqa: ASYNC110 - it only counts
                await trio.sleep(0.02)
            issuing.enrolment.settings = replace(issuing.enrolment.settings, max_at_once=1)
        assert facts_of(got[0]).identity == EDGE
        assert refusals["est", "too_many_enrolments"] == 1


async def test_a_server_that_takes_no_more_from_one_address_is_asked_again(tmp_path: Path) -> None:
    """The server closes an excess connection before the handshake, without an answer."""
    async with open_issuing(tmp_path) as issuing:
        relay = Relay(issuing.address, dropped={2, 3, 4})
        token = await issuing.token()
        async with listening(relay.handle) as address:
            contact = contact_with(issuing, token, port=int(address.rpartition(":")[2]))
            findings = await go_as_far_as_possible(contact)
        assert [f.step for f in findings if f.verdict is Verdict.PASS] == UNTIL_PROVEN
        assert relay.count == 1 + 3 + 3


async def test_a_server_that_always_breaks_off_is_given_up(tmp_path: Path) -> None:
    async with open_issuing(tmp_path) as issuing:
        relay = Relay(issuing.address, dropped=set(range(2, 100)))
        async with listening(relay.handle) as address:
            contact = contact_with(issuing, await issuing.token(), port=int(address.rpartition(":")[2]))
            findings = await go_as_far_as_possible(contact)
        assert (findings[-1].step, findings[-1].verdict) == ("pin", Verdict.FAIL)
        assert relay.count == 1 + 5


async def test_a_connection_that_is_reset_while_it_opens_is_one_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full server accepts and resets; the kernel may report the reset in the connect itself."""
    resets = 2

    async def connect_first(addresses: Sequence[str], port: int) -> Connected:
        nonlocal resets
        resets -= 1
        if resets >= 0:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return await happy_eyeballs.connect_first(addresses, port)

    async with open_issuing(tmp_path) as issuing:
        contact = contact_with(issuing, await issuing.token())
        await go_as_far_as_possible(contact)
        monkeypatch.setattr("tunnel_agent.network.server_path.connect_first", connect_first)
        leaf = await spend_token(contact, "edge1", make_request(EDGE))
        assert facts_of(leaf).identity == EDGE
