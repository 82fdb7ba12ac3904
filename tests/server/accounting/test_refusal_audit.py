"""Refused identities in the audit: a flood of refusals is one line a minute."""

from __future__ import annotations

import pytest

from certs.x509 import IdentityError
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_server.accounting.refusal_audit import MAX_SOURCES, Refusals, record_withdrawn, with_identity
from tunnel_server.store.audit import AuditKind, AuditLine

EDGE = SpiffeId("test.internal", Role.NODE, "edge1")
KIM = SpiffeId("test.internal", Role.USER, "kim")


class Written:
    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[AuditLine] = []
        self.refusals = Refusals(self.lines.append, lambda: self.now)

    def refuse(self, source: str = "10.0.0.1:5", reason: Reason = Reason.WRONG_ROLE) -> None:
        self.refusals.note("https", source, IdentityError(reason, "no", KIM, "a1"))


def test_a_line_has_caller_act_and_source() -> None:
    written = Written()
    written.refuse("[2001:db8::1]:5")
    [line] = written.lines
    assert line == AuditLine(
        AuditKind.REFUSED,
        user="kim",
        source="[2001:db8::1]:5",
        serial="a1",
        reason="wrong_role",
        detail="https: no",
    )
    written.refusals.note("agents", "10.0.0.1:5", IdentityError(Reason.REVOKED, "no", EDGE, "a2"))
    assert written.lines[1].node == "edge1"
    written.refusals.note("https", "uid 7", Refused(Reason.UNAUTHENTICATED, "who?"))
    assert (written.lines[2].user, written.lines[2].node, written.lines[2].source) == ("", "", "uid 7")
    server = SpiffeId("test.internal", Role.SERVER, "main")
    assert with_identity(server, line) == with_identity(None, line) == line


def test_a_flood_is_one_line_and_a_count() -> None:
    written = Written()
    for port in range(1000):
        written.refuse(f"10.0.0.1:{port}")
        written.refuse(f"[2001:db8::{port:x}]:1")  # one customer
    assert len(written.lines) == 2
    written.now = 59.9
    written.refusals.sweep()
    assert len(written.lines) == 2
    written.now = 60.0
    written.refusals.sweep()
    assert [line.detail for line in written.lines[2:]] == [
        "999 more within a minute, the first of them: https: no"
    ] * 2
    written.refuse()
    assert len(written.lines) == 5
    written.now = 200.0
    written.refusals.sweep()
    assert len(written.lines) == 5  # nothing was left out


def test_reasons_and_sources_are_counted_apart_up_to_a_bound() -> None:
    written = Written()
    written.refuse(reason=Reason.REVOKED)
    written.refuse(reason=Reason.WRONG_ROLE)
    for number in range(MAX_SOURCES * 2):
        written.refuse(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}:1")
    assert MAX_SOURCES <= len(written.lines) <= MAX_SOURCES + 1
    written.refusals.sweep(ends=True)
    assert "more within a minute" in written.lines[-1].detail


@pytest.mark.parametrize("reason", [Reason.HANDSHAKE_FAILED, Reason.CARRIER_LOST, Reason.UNKNOWN_NODE])
def test_refusals_that_are_not_about_identity_are_not_audited(reason: Reason) -> None:
    written = Written()
    written.refuse(reason=reason)
    assert written.lines == []


def test_what_the_grants_refuse_a_user_is_one_line_a_minute_from_any_source() -> None:
    written = Written()
    refused = Refused(Reason.NOT_GRANTED, "user kim may not connect")
    for number in range(100):
        written.refusals.note_user("connect", "kim", f"edge{number}", f"10.0.0.{number}:5", refused)
    written.refusals.note_user("connect", "lee", "edge1", "10.0.0.1:5", refused)
    assert [(line.user, line.node, line.source) for line in written.lines] == [
        ("kim", "edge0", "10.0.0.0:5"),
        ("lee", "edge1", "10.0.0.1:5"),
    ]
    written.now = 60.0
    written.refusals.sweep()
    assert written.lines[2].detail.startswith("99 more within a minute, the first of them: connect: user kim")


def test_a_withdrawn_access_is_a_line_of_the_user() -> None:
    lines: list[AuditLine] = []
    record_withdrawn(lines.append, "kim", 1, Refused(Reason.NOT_GRANTED, "why"))
    record_withdrawn(lines.append, "kim", 2, Refused(Reason.NOT_GRANTED, "why"))
    assert lines == [
        AuditLine(AuditKind.ENDED, user="kim", reason="not_granted", detail="1 stream was ended: why"),
        AuditLine(AuditKind.ENDED, user="kim", reason="not_granted", detail="2 streams were ended: why"),
    ]
