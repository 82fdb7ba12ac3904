"""The effects of each reason at server and agent: one table, compared with what the programs do."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import trio
import trio.testing

from certs.x509 import VerifiedCertificate
from tests.agent.attach.test_loop import FakeSession
from tests.server.nodes.test_attach import AgentsPort, open_agents_port
from tests.support.fakes import memory_link
from tests.support.fakes.memory_carrier import MemoryCarrier, memory_carriers
from tests.support.pki import authority as pki
from tunnel_agent.attach.failover import SessionFailover
from tunnel_agent.attach.loop import HOPELESS_SECONDS, AttachLoop
from tunnel_agent.status.state import AgentState
from tunnel_core.cli.command_line import exit_code_of
from tunnel_core.config.types import Log, StreamLog
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import AgentHandshake, AttachRejected
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.logs import RefusalLines, StreamFacts, stream_closed
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.store.audit import AuditLine

# Reason, HTTP status, exit code of a command, level of the line about a closed stream, whether a refusal
# at an entrance is a line of the audit, and what an agent that is refused an attach for it tries next.
TABLE = """
done                    200  1  info     -        new_session
user_left               499  1  info     -        new_session
target_reset            502  1  info     -        new_session
idle_timeout            504  1  info     -        new_session
bad_request             400  2  warning  -        new_session
head_too_large          431  1  warning  -        new_session
head_timeout            408  1  warning  -        new_session
handshake_failed        400  1  warning  -        new_session
unauthenticated         401  3  warning  audited  new_session
wrong_role              403  3  warning  audited  new_session
wrong_trust_domain      403  3  warning  audited  new_session
source_not_allowed      403  3  warning  -        new_session
unknown_node            404  4  warning  -        new_session
ambiguous_name          409  2  warning  -        new_session
node_not_attached       503  4  warning  -        new_session
unknown_service         404  1  warning  -        new_session
target_not_allowed      403  3  warning  -        new_session
not_granted             403  3  warning  audited  new_session
not_found               404  1  warning  -        new_session
method_not_allowed      405  1  warning  -        new_session
misdirected             421  1  warning  -        new_session
name_not_resolved       502  1  warning  -        new_session
dial_refused            502  1  warning  -        new_session
dial_unreachable        502  1  warning  -        new_session
dial_timeout            504  1  warning  -        new_session
dial_failed             502  1  warning  -        new_session
target_protocol         502  1  warning  -        new_session
target_timeout          504  1  warning  -        new_session
too_many_connections    503  1  warning  -        same_session
too_many_from_source    429  1  warning  -        same_session
too_many_streams        503  1  warning  -        same_session
too_many_sessions       503  1  warning  -        same_session
no_descriptors          503  1  warning  -        same_session
stalled_under_pressure  503  1  warning  -        same_session
open_flood              429  1  warning  -        same_session
open_timeout            504  1  warning  -        new_session
send_memory_full        503  1  warning  -        same_session
frame_flood             429  1  warning  -        new_session
too_many_of_user        429  1  warning  -        same_session
bad_csr                 400  1  warning  -        new_session
weak_key                400  1  warning  -        new_session
csr_name_mismatch       403  3  warning  -        new_session
token_wrong             401  3  warning  -        new_session
token_expired           403  3  warning  -        new_session
token_used_up           403  3  warning  -        new_session
token_revoked           403  3  warning  -        new_session
token_name_mismatch     403  3  warning  -        new_session
token_replayed          403  3  warning  -        new_session
revoked                 403  3  warning  audited  after_repair
too_many_enrolments     503  1  warning  -        same_session
too_many_guesses        429  1  warning  -        same_session
certificate_expired     403  3  warning  audited  after_repair
certificate_unusable    503  1  warning  -        same_session
root_retired            403  3  warning  audited  after_repair
session_lost            502  4  warning  -        new_session
ping_timeout            504  1  warning  -        new_session
carrier_lost            502  1  warning  -        same_session
taken_over              502  1  warning  -        new_session
server_stopping         503  1  warning  -        same_session
agent_stopping          503  1  warning  -        new_session
attach_timeout          408  1  warning  -        same_session
stale_attempt           409  1  warning  -        same_session
unknown_session         404  1  warning  -        new_session
peer_stalled            504  1  warning  -        new_session
grace_expired           504  1  warning  -        new_session
agent_restarted         502  1  warning  -        new_session
session_mismatch        403  3  warning  audited  new_session
duplicate_node          409  1  warning  -        new_session
too_many_attaches       429  1  warning  -        same_session
malformed_packet        400  1  warning  -        new_session
protocol_error          400  1  warning  -        new_session
unknown_frame           400  1  warning  -        new_session
version_mismatch        400  1  warning  -        new_session
credit_overrun          400  1  warning  -        new_session
ack_of_unsent           400  1  warning  -        new_session
data_after_end          400  1  warning  -        new_session
data_gap                400  1  warning  -        new_session
stream_never_opened     400  1  warning  -        new_session
number_out_of_range     400  1  warning  -        new_session
tls_too_old             400  1  warning  -        new_session
store_full              507  1  warning  -        same_session
store_failed            503  1  warning  -        same_session
audit_failed            503  1  warning  -        same_session
rotation_refused        409  3  warning  -        new_session
authority_unusable      503  1  warning  -        same_session
internal_error          500  1  warning  -        same_session
"""
FACTS = StreamFacts("1", "kim", "edge1", "localhost:22", "connect")


@dataclass(frozen=True)
class Effects:
    status: int
    exit_code: int
    level: str
    is_audited: bool
    retry: str


def effects(line: str) -> tuple[str, Effects]:
    word, status, exit_code, level, audited, retry = line.split()
    return word, Effects(int(status), int(exit_code), level, audited == "audited", retry)


EFFECTS = dict(map(effects, TABLE.strip().splitlines()))
each_reason = pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.word)


def test_the_table_has_each_reason_once() -> None:
    words = [line.split()[0] for line in TABLE.strip().splitlines()]
    assert words == [reason.word for reason in Reason]


@each_reason
def test_status_and_exit_code(reason: Reason) -> None:
    wanted = EFFECTS[reason.word]
    assert (reason.status, int(exit_code_of(reason))) == (wanted.status, wanted.exit_code)


@each_reason
def test_the_level_of_the_line_of_a_closed_stream(reason: Reason, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "qanat.streams")
    stream_closed(Log(), FACTS, reason, seconds=1, bytes_to_target=0, bytes_to_user=0)
    assert [record.levelname.lower() for record in caplog.records] == [EFFECTS[reason.word].level]


@each_reason
def test_a_normal_end_has_no_line_where_only_errors_are_logged(
    reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "qanat.streams")
    errors = Log(streams=StreamLog.ERRORS)
    stream_closed(errors, FACTS, reason, seconds=1, bytes_to_target=0, bytes_to_user=0)
    RefusalLines(errors).stream_refused(FACTS, Refused(reason), now=0.0)
    assert len(caplog.records) == (0 if EFFECTS[reason.word].level == "info" else 2)


@each_reason
def test_the_audit_has_every_refused_identity(reason: Reason) -> None:
    lines: list[AuditLine] = []
    Refusals(lines.append, lambda: 0.0).note("https", "10.0.0.1:5", Refused(reason))
    assert [line.reason for line in lines] == [reason.word] * EFFECTS[reason.word].is_audited


# An attach that is refused: what the agent tries next, and when the server asks it to come back.


@each_reason
async def test_a_resumption_that_is_refused(reason: Reason, autojump_clock: trio.testing.MockClock) -> None:
    """The agent keeps its session only for a reason after which a server may accept the same session soon."""
    tries = 0

    async def refuse(*_: object) -> Attachment:
        nonlocal tries
        tries += 1
        await trio.sleep(0.1)
        raise Refused(reason)

    async with lost_session() as link:
        failover = SessionFailover(
            link,
            refuse,
            response_timeout_seconds=10,
            max_wait_seconds=2,
            on_state_change=lambda event: None,
            on_carried=trio.lowlevel.checkpoint,
        )
        with trio.move_on_after(30):
            await failover.run()
        if EFFECTS[reason.word].retry == "same_session":
            assert tries > 5
            assert link.ended is None
        else:
            assert tries == 1
            assert link.ended == (reason, reason.meaning)


@each_reason
async def test_a_new_session_that_is_refused(reason: Reason, autojump_clock: trio.testing.MockClock) -> None:
    """The agent tries again with the usual back-off, unless an operator has to act first."""
    tried: list[float] = []

    @asynccontextmanager
    async def refuse(server: str) -> AsyncIterator[FakeSession]:
        tried.append(trio.current_time())
        raise Refused(reason)
        yield

    state = AgentState("edge1", ("a:7001",), clock=trio.current_time)
    with trio.move_on_after(4 * HOPELESS_SECONDS):
        await AttachLoop(refuse, state, Counters(), max_wait_seconds=32).run()
    assert (tried[1] - tried[0] >= HOPELESS_SECONDS) is (EFFECTS[reason.word].retry == "after_repair")


@each_reason
async def test_the_retry_times_that_the_server_sends(
    reason: Reason, autojump_clock: trio.testing.MockClock
) -> None:
    class Refusing(CredentialWatch):
        def require(self, proven: VerifiedCertificate | None) -> None:
            raise Refused(reason)

    async with open_agents_port() as agents_port:
        rejected = await attach_at(
            agents_port, Refusing(agents_port.revoked, lambda: datetime.now(UTC), lambda ended: None)
        )
        if reason is Reason.DONE:  # a rejection is never a success
            assert rejected.reason is Reason.PROTOCOL_ERROR
        else:
            assert rejected.reason is reason
        waits_for_repair = EFFECTS[reason.word].retry == "after_repair"
        assert rejected.retry_after_seconds == (HOPELESS_SECONDS if waits_for_repair else 5)


@asynccontextmanager
async def lost_session() -> AsyncIterator[memory_link.Session]:
    """Yield the agent's end of a session in grace, which has just lost its carrier."""
    async with memory_link.memory_links(Limits(grace_seconds=600), grace_ms=600_000) as pair:
        carrier = pair.carriers[1]
        assert isinstance(carrier, MemoryCarrier)
        carrier.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.agent.lost is not None
        yield pair.agent


async def attach_at(agents_port: AgentsPort, watch: CredentialWatch) -> AttachRejected:
    agents_port.make_acceptor(watch)
    leaf = pki.node_leaf("edge1").credential.certificate_pem
    near, far = memory_carriers(agents_port.nursery, leaf_pem=leaf)
    agents_port.acceptor.take(near)
    with pytest.raises(AttachRejected) as caught:
        await Attachment(far, AgentHandshake(memory_link.hello(agents_port.limits))).settle(10)
    return caught.value
