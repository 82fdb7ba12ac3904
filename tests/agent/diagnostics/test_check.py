"""``qanat-agent check``: each thing that breaks is found at its step and named with its cure."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio

from certs.bundle import write_bundle
from certs.ca import LOOPBACK_NAMES, create_authority
from tests.support.fakes.grpc_site import open_site, server_tls
from tests.support.fakes.memory_link import welcome
from tests.support.net.listening import ignore, listening, tls_server
from tests.support.pki import authority as pki
from tests.support.pki.authority import authority, bundle_of, expired_leaf
from tests.support.pki.issuing import open_issuing
from tunnel_agent.attach.connector import Connector
from tunnel_agent.checks import CheckResult, Verdict
from tunnel_agent.diagnostics.check import check_all, check_certificate
from tunnel_agent.diagnostics.check_renewal import check_clock, check_renewal
from tunnel_agent.diagnostics.server_probe import ServerProbe
from tunnel_agent.installation import Installation, load_installation
from tunnel_agent.network.resolver import Resolve, resolve_server
from tunnel_agent.targets.check import check_targets
from tunnel_core.carrier.asyncio_bridge import Bridge, open_bridge
from tunnel_core.carrier.interface import Carrier
from tunnel_core.cli.command_line import ExitCode
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import ServerHandshake
from tunnel_core.wire.frames import Hello, Rejected, Welcome


@pytest.fixture
def no_environment_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def installation_in(folder: Path, *servers: str, text: str = "") -> Installation:
    write_bundle(folder / "node.pem", bundle_of(Role.NODE, "edge1", agents=servers))
    (folder / "agent.toml").write_text("[session]\nconnect_timeout_seconds = 2\n" + text)
    return load_installation(folder / "agent.toml")


async def probe(
    installation: Installation,
    bridge: Bridge,
    resolve: Resolve = resolve_server,
    *,
    response_timeout_seconds: float = 2.0,
) -> list[CheckResult]:
    findings: list[CheckResult] = []
    connector = Connector(
        bridge=bridge,
        bundle=installation.bundle,
        proxy=installation.proxy,
        limits=Limits(),
        connect_timeout_seconds=response_timeout_seconds,
        services=installation.services,
        on_open=lambda stream: None,
        on_state_change=lambda _: None,
        resolve=resolve,
    )
    await ServerProbe(installation.servers[0], installation, connector).run(findings.append)
    return findings


async def failure_at(step: str, installation: Installation) -> CheckResult:
    """The finding of the step that fails; those before it passed."""
    async with open_bridge() as bridge:
        findings = await probe(installation, bridge)
    assert [finding.verdict for finding in findings[:-1]] == [Verdict.PASS] * (len(findings) - 1)
    assert (findings[-1].step, findings[-1].verdict) == (step, Verdict.FAIL)
    assert findings[-1].fix
    return findings[-1]


Answer = Callable[[Hello], Welcome | Rejected]


async def answer_attaches(
    take: Callable[[], Awaitable[Carrier]], answer: Answer, used: list[Attachment]
) -> None:
    async def settle(attempt: Attachment) -> None:
        with contextlib.suppress(Refused):
            await attempt.settle(10)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(settle, Attachment(await take(), ServerHandshake(answer), used.append))


async def test_a_good_way_passes_every_step_and_takes_no_session(tmp_path: Path) -> None:
    used: list[Attachment] = []
    async with open_site() as site, trio.open_nursery() as nursery:
        nursery.start_soon(answer_attaches, site._accepted.receive, lambda _: welcome(Limits()), used)
        findings = await probe(installation_in(tmp_path, site.address), site.bridge)
        assert [(f.step, f.verdict) for f in findings] == [
            (step, Verdict.PASS) for step in ("dns", "tcp", "tls", "attach")
        ]
        assert "welcomed as node edge1 by qanat-server/test" in findings[-1].detail
        assert not used
        nursery.cancel_scope.cancel()


async def test_a_rejection_is_told_with_its_cure(tmp_path: Path) -> None:
    def reject(_: Hello) -> Rejected:
        return Rejected(Reason.WRONG_TRUST_DOMAIN, "the certificate is from another trust domain")

    async with open_site() as site, trio.open_nursery() as nursery:
        nursery.start_soon(answer_attaches, site._accepted.receive, reject, [])
        findings = await probe(installation_in(tmp_path, site.address), site.bridge)
        assert (findings[-1].step, findings[-1].verdict) == ("attach", Verdict.FAIL)
        assert findings[-1].detail.endswith("the certificate is from another trust domain")
        assert findings[-1].fix.endswith("`qanat-server issue node edge1`")
        nursery.cancel_scope.cancel()


async def test_a_server_that_does_not_trust_the_node_fails_at_the_attach(tmp_path: Path) -> None:
    other = authority("other.internal").issue(Role.NODE, "edge1").roots_pem
    async with open_site(tls=server_tls(roots_pem=other)) as site:
        findings = await probe(installation_in(tmp_path, site.address), site.bridge)
    assert (findings[-1].step, findings[-1].verdict) == ("attach", Verdict.FAIL)
    assert findings[-1].fix.startswith("the server closes the connection when it has seen this certificate")
    assert "`qanat-agent join SERVER --again`" in findings[-1].fix


async def test_a_server_that_breaks_off_later_is_not_blamed_on_the_certificate(tmp_path: Path) -> None:
    """As a middlebox does that does not know HTTP/2: it speaks first, and then cuts."""

    async def cut(tls: trio.SSLStream[trio.SocketStream]) -> None:
        await tls.send_all(b"\0\0\0\x04\0\0\0\0\0")  # empty settings
        await tls.receive_some()

    async with tls_server(tmp_path, then=cut) as address:
        found = await failure_at("attach", installation_in(tmp_path, address))
    assert "HTTP/2" in found.fix  # gRPC says that it broke, or tries until its time is over
    assert "bundle" not in found.fix


REJECTIONS = {
    Reason.UNAUTHENTICATED: "qanat-agent join SERVER --again",
    Reason.WRONG_ROLE: "qanat-server issue node edge1",
    Reason.WRONG_TRUST_DOMAIN: "qanat-server issue node edge1",
    Reason.REVOKED: "qanat-agent join SERVER --again",
    Reason.ROOT_RETIRED: "qanat-agent join SERVER --again",
    Reason.CERTIFICATE_EXPIRED: "if both clocks are right",
    Reason.DUPLICATE_NODE: "give the other machine a bundle of its own",
    Reason.VERSION_MISMATCH: "update",
    Reason.TOO_MANY_SESSIONS: "[agents] max",
    Reason.NO_DESCRIPTORS: "LimitNOFILE",
    Reason.SERVER_STOPPING: "wait until the server",
    Reason.INTERNAL_ERROR: "see the server's log",
}


async def test_who_comes_too_early_for_the_budget_of_the_node_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel_agent.attach.connector._PROBE_PAUSE_SECONDS", 0.01)
    early = Rejected(Reason.TOO_MANY_ATTACHES, "it may again in 5 s", 5000)
    answers: list[Rejected | Welcome] = [early, early, welcome(Limits())]
    async with open_site() as site, trio.open_nursery() as nursery:
        nursery.start_soon(answer_attaches, site._accepted.receive, lambda _: answers.pop(0), [])
        findings = await probe(installation_in(tmp_path, site.address), site.bridge)
        assert findings[-1].verdict is Verdict.PASS
        monkeypatch.setattr("tunnel_agent.attach.connector._PROBE_SECONDS", 0)
        answers.append(early)
        failed = (await probe(installation_in(tmp_path, site.address), site.bridge))[-1]
        assert "does another program use this bundle" in failed.fix
        nursery.cancel_scope.cancel()


async def test_each_rejection_has_its_own_cure(tmp_path: Path) -> None:
    reasons = list(REJECTIONS)

    def reject(_: Hello) -> Rejected:
        return Rejected(reasons[0], "a sentence")

    async with open_site() as site, trio.open_nursery() as nursery:
        nursery.start_soon(answer_attaches, site._accepted.receive, reject, [])
        installation = installation_in(tmp_path, site.address)
        while reasons:
            fix = (await probe(installation, site.bridge))[-1].fix
            assert REJECTIONS[reasons[0]] in fix, reasons[0]
            del reasons[0]
        nursery.cancel_scope.cancel()


async def test_a_server_that_speaks_tls_and_then_nothing_is_not_told_as_a_bad_certificate(
    tmp_path: Path,
) -> None:
    async with tls_server(tmp_path, silent=True) as address, open_bridge() as bridge:
        findings = await probe(installation_in(tmp_path, address), bridge, response_timeout_seconds=0.5)
    assert (findings[-1].step, findings[-1].verdict) == ("attach", Verdict.FAIL)
    assert "SETTINGS" in findings[-1].detail
    assert "bundle" not in findings[-1].fix and "HTTP/2" in findings[-1].fix


async def test_a_name_that_is_lost_on_the_way_is_not_told_as_a_bad_certificate(tmp_path: Path) -> None:
    async def lost(host: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        raise OSError(0, "Temporary failure in name resolution")

    async with tls_server(tmp_path) as address, open_bridge() as bridge:
        findings = await probe(installation_in(tmp_path, address), bridge, lost)
    assert (findings[-1].step, findings[-1].verdict) == ("attach", Verdict.FAIL)
    assert "cannot be resolved: Temporary failure" in findings[-1].detail
    assert "bundle" not in findings[-1].fix


async def test_an_unknown_issuer_is_named(tmp_path: Path) -> None:
    inspecting = authority("inspection.example").issue(Role.SERVER, "box", names=("127.0.0.1",))
    async with tls_server(tmp_path, inspecting) as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert "is issued by " in found.detail
    assert "inspection.example" in found.detail
    assert found.detail.endswith("not by your CA: TLS inspection?")


async def test_an_expired_server_certificate_is_held_against_the_clock(tmp_path: Path) -> None:
    async with tls_server(tmp_path, expired_leaf(Role.SERVER, "main")) as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert "ended on " in found.detail
    assert "this machine's clock says " in found.detail


async def test_a_server_certificate_of_the_future_points_at_the_clock(tmp_path: Path) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    leaf = authority().issue(Role.SERVER, "main", names=("127.0.0.1",), now=later)
    async with tls_server(tmp_path, leaf) as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert "begins on " in found.detail
    assert found.fix.startswith("set this machine's clock")


async def test_a_wrong_name_lists_the_right_ones(tmp_path: Path) -> None:
    leaf = authority().issue(Role.SERVER, "main", names=("tunnel.example.com", "192.0.2.7"))
    async with tls_server(tmp_path, leaf) as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert found.detail.endswith("is for tunnel.example.com, 192.0.2.7")


async def test_old_tls_is_told(tmp_path: Path) -> None:
    async with tls_server(tmp_path, tls12=True) as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert "speaks TLSv1.2" in found.detail


async def test_a_server_without_http2_is_told(tmp_path: Path) -> None:
    async with tls_server(tmp_path, alpn="http/1.1") as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert "does not offer HTTP/2" in found.detail


async def test_a_port_that_speaks_no_tls_is_told(tmp_path: Path) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
        await stream.receive_some()

    async with listening(plain) as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert "does not speak TLS" in found.detail


async def test_a_connection_that_is_cut_in_the_handshake_is_told(tmp_path: Path) -> None:
    async def cut(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    async with listening(cut) as address:
        found = await failure_at("tls", installation_in(tmp_path, address))
    assert "closed the connection during the TLS handshake" in found.detail


async def test_nobody_listens(tmp_path: Path) -> None:
    async with listening(ignore) as address:
        pass
    found = await failure_at("tcp", installation_in(tmp_path, address))
    assert f"{address} refused the connection" in found.detail


async def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    found = await failure_at("dns", installation_in(tmp_path, "nosuch.invalid:7001"))
    assert found.detail.startswith("nosuch.invalid cannot be resolved")


class FakeProxy:
    """An HTTP proxy that answers CONNECT with ``answer``, and tunnels if that is 200."""

    def __init__(self, answer: bytes = b"200 ok", target: str = "") -> None:
        self._answer = answer
        self._target = target
        self.heads: list[bytes] = []

    async def handle(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        await self.handle_head(stream, head)

    async def handle_or_end(self, stream: trio.SocketStream) -> None:
        """Likewise, for one that is looked at first by a connection without a request."""
        if head := await stream.receive_some():
            await self.handle_head(stream, head)

    async def handle_head(self, stream: trio.SocketStream, head: bytes) -> None:
        self.heads.append(head)
        await stream.send_all(b"HTTP/1.1 " + self._answer + b"\r\n\r\n")
        if not self._target:
            return
        host, _, port = self._target.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, far, stream)
            await self._copy(stream, far)
            nursery.cancel_scope.cancel()

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in source:
                await sink.send_all(data)


async def test_the_way_leads_through_the_proxy(tmp_path: Path, no_environment_proxy: None) -> None:
    async with open_site() as site, trio.open_nursery() as nursery:
        proxy = FakeProxy(target=site.address)
        nursery.start_soon(answer_attaches, site._accepted.receive, lambda _: welcome(Limits()), [])
        async with listening(proxy.handle) as address:
            (tmp_path / "password").write_text("geheim")
            installation = _proxied(tmp_path, site.address, address)
            findings = await probe(installation, site.bridge)
        assert [f.step for f in findings] == ["dns", "tcp", "proxy", "tls", "attach"]
        assert all(finding.verdict is Verdict.PASS for finding in findings), findings
        assert b"basic YWxpY2U6Z2VoZWlt".lower() in proxy.heads[0].lower()
        assert "geheim" not in str(findings)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "detail", "fix"),
    [
        (b"407 Who are you", "with 407 Who are you", "proxy_password_file"),
        (b"403 Forbidden", "with 403 Forbidden", "ask for CONNECT to tunnel.example.com:7001"),
        (b"502 Bad", "with 502 Bad", "no_proxy"),
    ],
)
async def test_what_the_proxy_answers_is_told(
    tmp_path: Path, no_environment_proxy: None, answer: bytes, detail: str, fix: str
) -> None:
    async with listening(FakeProxy(answer).handle) as address:
        (tmp_path / "password").write_text("geheim")
        found = await failure_at("proxy", _proxied(tmp_path, "tunnel.example.com:7001", address))
    assert detail in found.detail
    assert fix in found.fix


async def test_a_proxy_that_grpc_would_bypass_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "https://proxy:3128")
    found = await failure_at("proxy", installation_in(tmp_path, "tunnel.example.com:7001"))
    assert "is a https:// proxy" in found.detail


def _proxied(folder: Path, server: str, proxy: str) -> Installation:
    text = f'proxy = "http://alice@{proxy}"\nproxy_password_file = "password"\n'
    write_bundle(folder / "node.pem", bundle_of(Role.NODE, "edge1", agents=(server,)))
    (folder / "agent.toml").write_text(text)
    return load_installation(folder / "agent.toml")


# This machine's part.


def certificate_at(installation: Installation, days: float) -> CheckResult:
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    return check_certificate(installation, now)


def test_the_certificate_is_held_against_the_clock(tmp_path: Path) -> None:
    installation = installation_in(tmp_path, "a:7001")
    assert certificate_at(installation, 0).verdict is Verdict.PASS
    assert "in 9 days: bring a new bundle" in certificate_at(installation, 355).detail
    assert "ended on" in certificate_at(installation, 400).detail
    early = certificate_at(installation, -20000)
    assert early.verdict is Verdict.FAIL
    assert early.fix == "set the clock: `timedatectl set-ntp true`"


def test_a_key_of_another_certificate_is_found(tmp_path: Path) -> None:
    good, other = bundle_of(Role.NODE, "edge1", agents=("a:7001",)), bundle_of(Role.NODE, "edge2")
    mixed = type(good)(good.identity, other.key_pem, good.chain_pem, good.roots_pem, good.agents)
    write_bundle(tmp_path / "node.pem", mixed)
    (tmp_path / "agent.toml").write_text("")
    finding = certificate_at(load_installation(tmp_path / "agent.toml"), 0)
    assert finding.verdict is Verdict.FAIL
    assert "do not belong together" in finding.detail


async def _check_targets_of(read: Installation) -> list[CheckResult]:
    names = [service.name for service in read.config.service]
    return await check_targets(read.policy(), read.config.dial_timeout_seconds, names, read.config.allow)


async def test_each_target_is_dialled_and_ranges_are_not(tmp_path: Path) -> None:
    async with listening(ignore) as alive:
        async with listening(ignore) as dead:
            pass
        text = (
            f'[[service]]\nname = "web"\ntarget = "{alive}"\n[[service]]\nname = "gone"\ntarget = "{dead}"\n'
        )
        installation = installation_in(tmp_path, "a:7001", text=text)
        allow = f'allow = ["10.0.0.0/8:1-9", "{alive}"]\n'
        (tmp_path / "agent.toml").write_text(allow + text)
        read = load_installation(installation.file)
        findings = await _check_targets_of(read)
    assert [finding.verdict for finding in findings] == [
        Verdict.PASS,
        Verdict.FAIL,
        Verdict.SKIP,
        Verdict.PASS,
    ]
    assert findings[0].detail == f"web answers at {alive}"
    assert f"{dead} refused the connection" in findings[1].detail


@pytest.mark.parametrize(
    ("service", "detail", "fix"),
    [
        ('target = "nosuch.invalid:80"', "cannot resolve nosuch.invalid", "resolv.conf"),
        ('target = "{alive}"\nprotocol = "https"', "TLS to", "really https"),
        (
            'target = "{alive}"\nprotocol = "https"\nca_file = "none.pem"',
            "none.pem of service",
            "repair the cause above",
        ),
        (
            'target = "{alive}"\nprotocol = "https"\nca_file = "agent.toml"',
            "agent.toml of service",
            "repair the cause above",
        ),
        (
            'target = "{alive}"\nprotocol = "https"\nca_file = "/"',
            "ca_file / of service web cannot",
            "repair the cause above",
        ),
        ('target = "unix:/nonexistent/socket"', "does not exist", "repair the cause above"),
    ],
)
async def test_the_cure_of_a_target_fits_its_fault(
    tmp_path: Path, service: str, detail: str, fix: str
) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad\r\n\r\n")
        await stream.receive_some()

    async with listening(plain) as alive:
        text = f'dial_timeout_seconds = 1\n[[service]]\nname = "web"\n{service.format(alive=alive)}\n'
        (tmp_path / "agent.toml").write_text(text)
        write_bundle(tmp_path / "node.pem", bundle_of(Role.NODE, "edge1", agents=("a:7001",)))
        read = load_installation(tmp_path / "agent.toml")
        [finding] = await _check_targets_of(read)
    assert finding.verdict is Verdict.FAIL
    assert detail in finding.detail
    assert fix in finding.fix


async def test_a_bad_configuration_ends_the_check_with_every_problem(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('servres = []\nallow = ["nope"]\n')
    findings: list[CheckResult] = []
    assert await check_all(tmp_path / "agent.toml", None, findings.append) is ExitCode.USAGE
    assert [finding.step for finding in findings] == ["config", "config"]
    assert "did you mean servers?" in str(findings)


async def test_one_failure_makes_the_whole_check_fail(tmp_path: Path) -> None:
    async with listening(ignore) as address:
        pass
    findings: list[CheckResult] = []
    installation = installation_in(tmp_path, address)
    assert await check_all(installation.file, None, findings.append) is ExitCode.FAILED
    steps = ["config", "certificate", "clock", "renewal", "dns", "tcp"]
    assert [finding.step for finding in findings] == steps


# The clock, and what a renewal needs.


@pytest.mark.parametrize(
    ("days", "verdict", "says"),
    [(0, Verdict.PASS, "agrees with"), (30, Verdict.FAIL, "behind"), (-30, Verdict.FAIL, "ahead of")],
)
async def test_the_clock_is_compared_with_a_server_that_is_proven(
    tmp_path: Path, days: int, verdict: Verdict, says: str
) -> None:
    by = datetime.timedelta(days=days)
    async with open_issuing(tmp_path, wall=lambda: datetime.datetime.now(datetime.UTC) + by) as issuing:
        port = issuing.address.rpartition(":")[2]
        finding = await check_clock(renewable(tmp_path, f"localhost:{port}"))
    assert (finding.step, finding.verdict) == ("clock", verdict)
    assert says in finding.detail
    assert bool(finding.fix) == bool(days)


async def test_a_clock_of_a_server_that_is_not_proven_counts_for_nothing(tmp_path: Path) -> None:
    other = create_authority(pki.TRUST_DOMAIN).authority.issue(Role.SERVER, "main", names=LOOPBACK_NAMES)
    async with open_issuing(tmp_path, leaf=other) as issuing:
        port = issuing.address.rpartition(":")[2]
        finding = await check_clock(renewable(tmp_path, f"localhost:{port}"))
    assert finding.verdict is Verdict.SKIP
    assert "not by your CA" in finding.detail


def renewable(folder: Path, https: str) -> Installation:
    write_bundle(folder / "node.pem", bundle_of(Role.NODE, "edge1", agents=("a:1",), https=(https,)))
    (folder / "agent.toml").write_text("")
    return load_installation(folder / "agent.toml")


def test_what_a_renewal_needs_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_renewal(installation_in(tmp_path, "a:1")).verdict is Verdict.SKIP
    installation = renewable(tmp_path, "localhost:7002")
    finding = check_renewal(installation)
    assert finding.verdict is Verdict.PASS and "at localhost:7002" in finding.detail
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, who runs tests, may always
    assert check_renewal(installation).verdict is Verdict.FAIL
