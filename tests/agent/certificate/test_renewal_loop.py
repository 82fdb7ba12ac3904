"""The dates of renewals, by tables, and the loop that renews, with real processes and files."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from certs.bundle import Bundle, read_bundle, write_bundle
from certs.validity import BACK_DATED, ValidityPeriod, validity_of
from tests.support.net.listening import tls_server
from tests.support.pki import authority as pki
from tunnel_agent.certificate.bundle_watcher import BundleWatcher
from tunnel_agent.certificate.renew import renew
from tunnel_agent.certificate.renewal_loop import Renewal
from tunnel_agent.certificate.renewal_schedule import POLL_SECONDS, RenewalPlan, plan_after
from tunnel_agent.checks import CheckFailed
from tunnel_agent.installation import load_installation
from tunnel_agent.status.state import AgentState
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused

NOW = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)
HOUR = 3600.0
DAY = 24 * HOUR


def life(seconds: float, *, age: float = 0.0) -> ValidityPeriod:
    issued = NOW - datetime.timedelta(seconds=age)
    return ValidityPeriod("1", issued - BACK_DATED, issued + datetime.timedelta(seconds=seconds))


def later(seconds: float) -> datetime.datetime:
    return NOW + datetime.timedelta(seconds=seconds)


# The plan.


@pytest.mark.parametrize("seconds", [60, HOUR, 30 * DAY])
def test_it_is_due_at_two_thirds(seconds: float) -> None:
    plan = plan_after(life(seconds), 0.0, 0.5, renewed=False)
    assert plan.wait_seconds(NOW, 0.0, attached=True) == pytest.approx(seconds * 2 / 3)
    assert plan.wait_seconds(later(seconds * 0.7), seconds * 0.7, attached=True) == 0


@pytest.mark.parametrize(
    ("seconds", "first", "last"), [(60, 1, 3), (HOUR, 18, 180), (30 * DAY, HOUR, HOUR), (2, 1, 1)]
)
def test_failures_are_tried_again_ever_rarer_long_before_the_end(
    seconds: float, first: float, last: float
) -> None:
    plan = plan_after(life(seconds), 0.0, 0.5, renewed=False)
    waits = [plan.failed(0.0, 0.5) for _ in range(50)]
    assert (waits[0], waits[-1]) == (pytest.approx(first), pytest.approx(last))
    assert waits == sorted(waits)


def test_the_revoked_ask_every_few_minutes() -> None:
    plan = plan_after(life(60), 0.0, 0.5, renewed=False)
    assert [plan.failed(0.0, chance, hopeless=True) for chance in (0.0, 1.0)] == [150, 450]


def test_an_ended_certificate_is_renewed_only_if_the_server_still_accepts_it() -> None:
    plan = plan_after(life(60), 0.0, 0.5, renewed=False)
    assert plan.wait_seconds(later(61), 61.0, attached=False) == POLL_SECONDS
    assert plan.wait_seconds(later(61), 61.0, attached=True) == 0


def test_a_clock_in_1970_waits_for_another() -> None:
    plan = plan_after(life(60), 0.0, 0.5, renewed=False)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert plan.wait_seconds(epoch, 0.0, attached=False) > POLL_SECONDS


@given(
    st.floats(-60 * DAY, 60 * DAY),
    st.sampled_from([60.0, HOUR, 30 * DAY]),
    st.lists(st.booleans(), max_size=40),
)
def test_no_clock_makes_a_hot_loop(wrong: float, seconds: float, outcomes: list[bool]) -> None:
    """The wall clock may be wrong by any time: waits are at least half a second, or a third of a validity."""
    steady = 0.0
    plan = plan_after(life(seconds), steady, 0.5, renewed=False)
    for succeeds in outcomes:
        wait = plan.wait_seconds(later(wrong + steady), steady, attached=True)
        steady += wait
        if wait > 100 * DAY:
            return
        before = steady
        if succeeds:
            issued = later(steady)
            fresh = ValidityPeriod("2", issued - BACK_DATED, issued + datetime.timedelta(seconds=seconds))
            plan = plan_after(fresh, steady, 0.5, renewed=True)
            least = min(HOUR, seconds / 3)
        else:
            plan.failed(steady, 0.0)
            least = 0.5
        assert plan.wait_seconds(later(wrong + steady), before, attached=True) >= least * 0.999


# The file.


def bundle_for(seconds: float, name: str = "edge1", *, age: float = 0.0) -> Bundle:
    issued = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    leaf = pki.authority().issue(Role.NODE, name, days=seconds / DAY, now=issued)
    identity = SpiffeId(pki.TRUST_DOMAIN, Role.NODE, name)
    return Bundle(
        identity, leaf.credential.key_pem, leaf.chain_pem, leaf.roots_pem, ("a:1",), ("localhost:7002",)
    )


def held(folder: Path, *, age: float = 0.0) -> BundleWatcher:
    file = folder / "node.pem"
    write_bundle(file, bundle_for(200, age=age))
    return BundleWatcher(file, read_bundle(file))


def test_a_new_bundle_is_used_and_an_unusable_one_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = held(tmp_path)
    assert not bundle.reload_if_changed()
    write_bundle(bundle.file, bundle_for(120))
    assert bundle.reload_if_changed() and not bundle.reload_if_changed()
    assert bundle.bundle == read_bundle(bundle.file)
    before = bundle.bundle
    bundle.file.write_text("no bundle")
    assert not bundle.reload_if_changed() and not bundle.reload_if_changed()
    write_bundle(bundle.file, bundle_for(60, "edge2"))
    assert not bundle.reload_if_changed() and not bundle.reload_if_changed()
    bundle.file.unlink()
    assert not bundle.reload_if_changed()
    assert bundle.bundle == before
    assert len(caplog.records) == 2
    assert "restart the agent" in caplog.records[1].message


def test_a_certificate_problem_is_reported_with_the_clock(tmp_path: Path) -> None:
    bundle, now = held(tmp_path), datetime.datetime.now(datetime.UTC)
    assert bundle.certificate_problem(now) == ""
    ended = bundle.certificate_problem(now + datetime.timedelta(days=1))
    assert "ended on" in ended and "clock says" in ended and "qanat-agent join SERVER --again" in ended
    assert "begins on" in bundle.certificate_problem(now - datetime.timedelta(days=1))


# The loop. It starts a test program that does to the file what the real one does.

RENEWS = "import os, sys; os.replace(sys.argv[1], sys.argv[2])"


class Loop:
    """Renewals of a bundle; ``taken`` has each bundle that was used."""

    def __init__(self, bundle: BundleWatcher, *commands: list[str]) -> None:
        self.state = AgentState("edge1", ("a:1",))
        self.taken: list[Bundle] = []
        self.started = 0
        self._commands = commands
        self.renewal = Renewal(bundle, self.state, self._next, self.taken.append)

    def _next(self) -> list[str]:
        command = self._commands[min(self.started, len(self._commands) - 1)]
        self.started += 1
        return command

    async def run_until(self, done: object) -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.renewal.run)
                while not done():  # type: ignore[operator]  # noqa: ASYNC110 - no event announces a change of a file
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()


def renews_with(folder: Path, bundle: Bundle, to: Path) -> list[str]:
    staged = folder / f"next-{validity_of(bundle.chain_pem).serial}.pem"
    write_bundle(staged, bundle)
    return [sys.executable, "-c", RENEWS, str(staged), str(to)]


async def test_a_due_certificate_is_renewed_and_used(tmp_path: Path) -> None:
    bundle, new = held(tmp_path, age=170), bundle_for(HOUR)
    loop = Loop(bundle, renews_with(tmp_path, new, bundle.file))
    assert loop.state.certificate == bundle.validity
    await loop.run_until(lambda: loop.taken)
    assert loop.taken == [new]
    assert loop.state.certificate == validity_of(new.chain_pem)
    assert loop.started == 1


async def test_other_roots_are_used_and_are_no_renewal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = held(tmp_path)
    loop = Loop(bundle)
    more = pki.authority("other.internal").roots_pem
    other, due = replace(bundle.bundle, roots_pem=bundle.bundle.roots_pem + more), loop.state.renews_at
    write_bundle(bundle.file, other)
    await loop.run_until(lambda: loop.taken)
    assert loop.taken == [other]
    assert loop.state.renews_at == due
    assert not caplog.records


async def test_failures_are_one_line_each_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = held(tmp_path, age=170)
    answer = json.dumps({"reason": "store_full", "detail": "the disk is full"})
    fails = [sys.executable, "-c", f"import sys; print({answer!r}); sys.exit(1)"]
    dies = [sys.executable, "-c", "raise SystemExit('a bug')"]
    missing = [str(tmp_path / "nothing")]
    loop = Loop(bundle, fails, dies, missing, renews_with(tmp_path, bundle_for(HOUR), bundle.file))
    await loop.run_until(lambda: loop.taken)
    lines = [record for record in caplog.records if record.levelname == "WARNING"]
    causes = ["the disk is full", "a bug", "cannot be started"]
    assert [cause in line.getMessage() for cause, line in zip(causes, lines, strict=True)] == [True] * 3
    assert lines[0].fields["reason"] == "store_full"
    assert len(loop.state.troubles) == 3


async def test_a_renewal_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    bundle = held(tmp_path, age=170)
    pid_file = tmp_path / "pid"
    sleeps = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    loop = Loop(bundle, [sys.executable, "-c", sleeps])
    await loop.run_until(lambda: pid_file.exists() and pid_file.read_text())
    assert not is_running(pid_file.read_text())


def is_running(pid: str) -> bool:
    return Path("/proc", pid).exists()


def test_a_bundle_that_names_no_server_is_not_renewed(tmp_path: Path) -> None:
    file = tmp_path / "node.pem"
    pki.write_node_bundle(file, "edge1", "a:1")

    async def main() -> None:
        loop = Loop(BundleWatcher(file, read_bundle(file)), ["/bin/false"])
        with trio.move_on_after(DAY):
            await loop.renewal.run()
        assert loop.started == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_plan_states_the_time_of_the_renewal() -> None:
    plan = RenewalPlan(life(90), 0.5, 0.0)
    assert plan.at == later(60)


# The server's answers to a renewal.

CURES = {
    Reason.CERTIFICATE_EXPIRED: "if both clocks are right, bring a new bundle",
    Reason.ROOT_RETIRED: "qanat-agent join SERVER --again",
    Reason.UNAUTHENTICATED: "qanat-agent join SERVER --again",
    Reason.TOO_MANY_ENROLMENTS: "try again in a minute",
    Reason.SERVER_STOPPING: "wait until the server is back",
    Reason.STORE_FAILED: "see the server's log",
}


async def ask_who_refuses(reason: Reason, folder: Path) -> Exception:
    """Return the result of a renewal at a server that answers with ``reason``."""

    async def refuse(tls: trio.SSLStream[trio.SocketStream]) -> None:
        await tls.receive_some()
        head = f"HTTP/1.1 {reason.status} No\r\nqanat-reason: {reason.word}\r\ncontent-length: 4\r\n\r\n"
        await tls.send_all(head.encode() + b"why!")

    async with tls_server(folder, then=refuse) as address:
        write_bundle(folder / "node.pem", replace(bundle_for(HOUR), https=(address,)))
        (folder / "agent.toml").write_text("")
        with pytest.raises((CheckFailed, Refused), match="why!") as failed:
            await renew(load_installation(folder / "agent.toml"))
    return failed.value


@pytest.mark.parametrize("reason", CURES)
async def test_each_refusal_is_reported_with_its_cure(reason: Reason, tmp_path: Path) -> None:
    failed = await ask_who_refuses(reason, tmp_path)
    assert isinstance(failed, CheckFailed)
    assert CURES[reason] in failed.fix


@pytest.mark.parametrize("reason", [Reason.REVOKED, Reason.WRONG_ROLE, Reason.WRONG_TRUST_DOMAIN])
async def test_a_permanent_refusal_does_not_advise_a_retry(reason: Reason, tmp_path: Path) -> None:
    refused = await ask_who_refuses(reason, tmp_path)
    assert isinstance(refused, Refused) and refused.reason is reason
