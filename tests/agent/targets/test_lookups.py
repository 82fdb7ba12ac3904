"""Names of targets that do not resolve delay only the user who asked for them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.agent.targets.test_dialler import FILE, Network
from tunnel_agent.network import resolver
from tunnel_agent.network.resolver import MAX_TARGET_LOOKUPS, resolve_host
from tunnel_agent.targets.dialer import Dialler
from tunnel_agent.targets.lookups import FAILURE_SECONDS, TargetLookups
from tunnel_agent.targets.policy import Policy, parse_entry
from tunnel_agent.targets.tls import TargetTls
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused

SILENCE_SECONDS = 30.0
"""Seconds after which the system's resolver gives up, as glibc does."""


class Dns:
    """A resolver that finds ``db*.local``, is silent on ``*.silent``, and fails at once for the rest."""

    def __init__(self, most: int = MAX_TARGET_LOOKUPS) -> None:
        self.asked: list[str] = []
        self.most_at_once = self.at_once = 0
        self.error: OSError = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self._limiter = trio.CapacityLimiter(most)

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async with self._limiter:
                with trio.CancelScope(shield=True):  # the thread continues after its user has left
                    await trio.sleep(SILENCE_SECONDS if host.endswith(".silent") else 0.002)
        finally:
            self.at_once -= 1
        if not host.startswith("db"):
            raise self.error
        return ["10.0.0.5"]


def dialler(dns: Dns, nursery: trio.Nursery) -> Dialler:
    policy = Policy(node="edge1", file=FILE, allow=[parse_entry("10.0.0.0/8:80")], services=())
    tls, network = TargetTls("edge1", FILE), Network(a10_0_0_5=(0.0, 0))
    return Dialler(
        policy,
        10.0,
        tls,
        connect=network.connect,
        lookups=TargetLookups(nursery, dns, most=dns._limiter.total_tokens),
    )


async def refusal(dials: Dialler, host: str, user: str) -> Refused:
    with pytest.raises(Refused) as caught:
        await dials.dial(Target.parse(f"{host}:80"), user=user)
    return caught.value


async def test_names_that_do_not_resolve_hold_up_no_other_user(autojump_clock: MockClock) -> None:
    dns = Dns()
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        for number in range(200):
            nursery.start_soon(refusal, dials, f"name{number}.silent", "mallory")
        await trio.sleep(1)
        start = trio.current_time()
        dialled = await dials.dial(Target.parse("db.local:80"), user="alice")
        assert trio.current_time() - start < 0.1
        dialled.stream.abort()
        assert dns.most_at_once <= MAX_TARGET_LOOKUPS // 8 + 1
        nursery.cancel_scope.cancel()


async def test_the_lookups_of_users_who_left_count_until_they_end(autojump_clock: MockClock) -> None:
    dns = Dns()
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        for round_ in range(5):  # each user leaves after a second, and comes back with new names
            with trio.move_on_after(1):
                async with trio.open_nursery() as users:
                    for number in range(50):
                        users.start_soon(refusal, dials, f"name{round_}-{number}.silent", "mallory")
        assert dns.at_once <= MAX_TARGET_LOOKUPS // 8
        nursery.cancel_scope.cancel()


async def test_a_delayed_user_gets_the_cause_and_continues_when_the_resolver_gave_up(
    autojump_clock: MockClock,
) -> None:
    dns = Dns()
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        for number in range(8):
            nursery.start_soon(refusal, dials, f"name{number}.silent", "mallory")
        await trio.sleep(0.1)
        refused = await refusal(dials, "db.local", "mallory")
        assert refused.reason is Reason.NAME_NOT_RESOLVED
        assert "the resolver has not answered 7 earlier look-ups of mallory yet" in refused.detail
        await trio.sleep(SILENCE_SECONDS)
        (await dials.dial(Target.parse("db.local:80"), user="mallory")).stream.abort()


async def test_a_user_without_a_lookup_gets_the_cause_that_others_hold_all(autojump_clock: MockClock) -> None:
    dns = Dns(most=2)
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        for user in ("mallory", "bob"):
            nursery.start_soon(refusal, dials, f"{user}.silent", user)
        await trio.sleep(0.1)
        refused = await refusal(dials, "db.local", "alice")
        assert "all 2 look-ups of this agent are in use by other users" in refused.detail
        assert "alice" not in refused.detail
        nursery.cancel_scope.cancel()


async def test_a_burst_of_names_that_resolve_loses_none(autojump_clock: MockClock) -> None:
    dns, found = Dns(), 0
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)

        async def dial(number: int) -> None:
            nonlocal found
            (await dials.dial(Target.parse(f"db{number}.local:80"), user="alice")).stream.abort()
            found += 1

        async with trio.open_nursery() as users:
            for number in range(300):
                users.start_soon(dial, number // 2)
    assert found == 300 and trio.current_time() < 5


async def test_many_users_share_what_there_is_and_each_waits_for_its_turn(autojump_clock: MockClock) -> None:
    dns = Dns(most=8)
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        outcomes: list[Refused] = []

        async def dial(number: int) -> None:
            outcomes.append(await refusal(dials, f"unknown{number}.local", f"user{number % 20}"))

        for number in range(100):
            nursery.start_soon(dial, number)
    assert len(outcomes) == 100 == len(dns.asked)
    assert all("Name or service not known" in refused.detail for refused in outcomes)
    assert dns.most_at_once == 8


async def test_one_lookup_serves_all_requests_for_a_name_at_once(autojump_clock: MockClock) -> None:
    dns = Dns()
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        async with trio.open_nursery() as users:
            for number in range(50):
                users.start_soon(refusal, dials, "name.silent", f"user{number}")
        assert dns.asked == ["name.silent"]
        nursery.cancel_scope.cancel()


async def test_a_failure_is_remembered_for_a_short_time_and_a_success_is_not(
    autojump_clock: MockClock,
) -> None:
    dns = Dns()
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        for _ in range(3):
            refused = await refusal(dials, "unknown.local", "alice")
            assert refused.reason is Reason.NAME_NOT_RESOLVED
        assert dns.asked == ["unknown.local"]
        await trio.sleep(FAILURE_SECONDS)
        await refusal(dials, "unknown.local", "alice")
        assert dns.asked == ["unknown.local"] * 2
        for _ in range(2):
            (await dials.dial(Target.parse("db.local:80"), user="alice")).stream.abort()
        assert dns.asked[2:] == ["db.local"] * 2


async def test_a_failure_of_this_machine_is_not_remembered(autojump_clock: MockClock) -> None:
    dns = Dns()
    dns.error = OSError(errno.EMFILE, "Too many open files")
    async with trio.open_nursery() as nursery:
        dials = dialler(dns, nursery)
        assert (await refusal(dials, "unknown.local", "alice")).reason is Reason.NO_DESCRIPTORS
        assert (await refusal(dials, "unknown.local", "alice")).reason is Reason.NO_DESCRIPTORS
    assert len(dns.asked) == 2


async def test_remembered_failures_are_bounded(autojump_clock: MockClock) -> None:
    dns = Dns()
    async with trio.open_nursery() as nursery:
        lookups = TargetLookups(nursery, dns)
        for number in range(1100):
            with pytest.raises(OSError, match="not known"):
                await lookups.resolve(f"unknown{number}.local", "mallory")
    assert len(lookups._failed) == 1024 and not lookups._running and not lookups._of_user


async def test_targets_take_no_thread_from_the_way_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real threads: all threads of targets are stuck, and the agent still looks up a server."""
    release = trio.lowlevel.current_trio_token()
    stuck, all_stuck, go = 0, trio.Event(), trio.Event()

    def wait() -> None:
        nonlocal stuck
        stuck += 1
        if stuck == MAX_TARGET_LOOKUPS:
            all_stuck.set()

    def look_up(host: str, flags: int) -> list[str]:
        if host == "tunnel.local":
            return ["10.0.0.1"]
        trio.from_thread.run_sync(wait, trio_token=release)
        trio.from_thread.run(go.wait, trio_token=release)
        return ["10.0.0.2"]

    monkeypatch.setattr(resolver, "_look_up", look_up)
    async with trio.open_nursery() as nursery:
        for number in range(MAX_TARGET_LOOKUPS + 5):
            nursery.start_soon(resolve_host, f"name{number}.local")
        with trio.fail_after(10):
            await all_stuck.wait()
            assert await resolver.resolve_server("tunnel.local") == ["10.0.0.1"]
            assert await trio.to_thread.run_sync(lambda: 1) == 1
        assert stuck == MAX_TARGET_LOOKUPS
        go.set()
