"""The server as a process, with real agents: start, ready, renewed certificates, drain and end."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from certs.bundle import read_bundle
from certs.ca import LOOPBACK_NAMES, create_authority
from certs.x509 import describe
from tests.client.test_commands import QANAT, environment, qanat
from tests.support.net.listening import echo, listening
from tests.support.pki import authority as pki
from tests.support.pki.authority import write_user_bundle
from tests.support.processes.servers import AGENT, SERVER, Program, Site, run_server, running, tcp_port
from tests.support.processes.terminals import terminal
from tunnel_core.identity import Role
from tunnel_core.telemetry import prometheus as metrics
from tunnel_core.telemetry.counters import Counters

DEADLINE_SECONDS = 30


@asynccontextmanager
async def attached(
    folder: Path, extra: str = "", **settings: str
) -> AsyncIterator[tuple[Site, Program, Program]]:
    """A site, its server, and the agent of edge1 that is attached; a tcp port leads to an echo."""
    with trio.fail_after(DEADLINE_SECONDS):
        async with listening(echo) as target:
            site = Site(folder, tcp_port(target) + extra, settings)
            site.write()
            async with site.server() as server, site.agent(target) as agent:
                await server.line("node edge1 attached")
                yield site, server, agent


async def say(stream: trio.SocketStream, text: bytes) -> None:
    await stream.send_all(text)
    assert await stream.receive_some() == text


async def test_a_burst_at_a_port_that_asks_for_no_identity_gets_in(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, _, _):
        streams: list[trio.abc.Stream] = []

        async def open_one() -> None:
            streams.append(await site.through())

        async with trio.open_nursery() as nursery:
            for _ in range(100):  # three times the unauthenticated connections of one source
                nursery.start_soon(open_one)
        for stream in streams:
            await say(stream, b"hello")


async def test_sigterm_drains(tmp_path: Path) -> None:
    async with attached(tmp_path, drain_seconds="20") as (site, server, agent):
        assert await site.page("/readyz") == (200, "ready\n")
        idle, stream = await site.tls("https"), await site.through()
        await say(stream, b"hello")
        began = trio.current_time()
        server.signal(signal.SIGTERM)
        await server.line("SIGTERM: draining")
        assert await site.page("/readyz") == (503, "server_stopping\n")
        assert (await site.page("/healthz"))[0] == 200
        # Connected clients already have the reason; others find no listener.
        await idle.send_all(b"CONNECT edge1:22 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await idle.receive_some()).startswith(b"HTTP/1.1 503 node edge1 takes no new streams")
        for listener in ("agents", "https", "web", "tcp"):
            with pytest.raises(OSError):
                await site.through(site.ready[listener])
        assert not (tmp_path / "admin.sock").exists()
        await say(stream, b"last words")
        await stream.send_eof()
        assert await stream.receive_some() == b" bye"
        assert await stream.receive_some() == b""
        assert await server.exit_code() == 0
        assert trio.current_time() - began < 5
        await server.line("drained")
        assert (await server.line("stream closed"))["reason"] == "done"
        await agent.line("ended", reason="server_stopping")
        assert server.stray == []


async def test_streams_that_do_not_finish_are_reset(tmp_path: Path) -> None:
    async with attached(tmp_path, drain_seconds="0.3") as (site, server, agent):
        stream = await site.through()
        await say(stream, b"hello")
        began = trio.current_time()
        server.signal(signal.SIGINT)  # as SIGTERM: the server is no foreground program
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert await server.exit_code() == 0
        assert trio.current_time() - began < 3
        await server.line("1 streams did not finish in 0.3 s")
        assert (await server.line("stream closed"))["reason"] == "server_stopping"
        assert (await agent.line("stream closed"))["reason"] == "server_stopping"


async def test_an_agent_that_receives_nothing_delays_no_drain(tmp_path: Path) -> None:
    async with attached(tmp_path, drain_seconds="0.3") as (site, server, agent):
        await say(await site.through(), b"hello")
        agent.signal(signal.SIGSTOP)
        began = trio.current_time()
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert trio.current_time() - began < 2.2  # 8 s of drain and this stay below Docker's 10
        assert server.stray == []


async def test_a_second_signal_forces(tmp_path: Path) -> None:
    async with attached(tmp_path, drain_seconds="600") as (site, server, _):
        stream = await site.through()
        await say(stream, b"hello")
        server.signal(signal.SIGTERM)
        await server.line("draining")
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 1
        await server.line("second signal")
        assert server.stray == []
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_after_sighup_new_certificates_are_used_and_broken_ones_are_not(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, _):
        stream = await site.through()
        old, new = pki.server_leaf(), pki.server_leaf("second")
        for listener in ("https", "agents"):
            assert await serial(site, listener) == serial_of(old.chain_pem)
        site.write_certificate(new)
        after = server.signal(signal.SIGHUP)
        await server.line("read anew", after)
        assert (await server.line("server certificate", after))["serial"] == serial_of(new.chain_pem)
        for listener in ("https", "agents"):
            assert await serial(site, listener) == serial_of(new.chain_pem)
        for break_it, words in BREAKAGES.items():
            site.write_certificate(new)
            (tmp_path / break_it).write_bytes(b"nonsense")
            after = server.signal(signal.SIGHUP)
            assert words in (await server.line("the certificates stay as they were", after))["message"]
            for listener in ("https", "agents"):
                assert await serial(site, listener) == serial_of(new.chain_pem)
        await say(stream, b"still here")
        assert await site.page("/readyz") == (200, "ready\n")


BREAKAGES = {"server.key": "server.key", "server.pem": "server.pem", "trust.pem": "trust.pem"}


async def serial(site: Site, listener: str) -> str:
    return describe(await site.shown_certificate(listener)).serial


def serial_of(pem: bytes) -> str:
    return describe(pem).serial


async def test_a_server_ends_with_its_terminal_and_not_before(tmp_path: Path) -> None:
    """SIGHUP reads certificates again; from a closed terminal it means the end."""
    site = Site(tmp_path)
    site.write()
    with terminal([*SERVER, "run", "--config", str(site.config)], os.environ) as window:
        window.wait_for("ready")
        window.process.send_signal(signal.SIGHUP)
        window.wait_for("were read anew")
        window.close()
        assert window.process.wait(15) == 0


async def test_the_ready_line_names_every_listener(tmp_path: Path) -> None:
    site = Site(tmp_path, f'[connect.unix]\npath = "{tmp_path}/c.sock"\n' + tcp_port("localhost:22"))
    site.write()
    with trio.fail_after(DEADLINE_SECONDS):
        async with site.server() as server:
            named = {key for key in site.ready if key not in ("time", "level", "logger", "message")}
            assert named == {"agents", "https", "admin", "connect", "web", "tcp", "ops"}
            assert site.ready["connect"] == f"{tmp_path}/c.sock"
            assert site.ready["admin"] == f"{tmp_path}/admin.sock"
            listening_at = [site.ready[key] for key in ("agents", "https", "web", "tcp", "ops")]
            for address in listening_at:
                await trio.aclose_forcefully(await site.through(address))
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            assert f"{hard} file descriptors" in (await server.line("room for"))["message"]
            assert (await server.line("server certificate"))["names"] == ", ".join(LOOPBACK_NAMES)
            server.signal(signal.SIGTERM)
            assert await server.exit_code() == 0
            assert sockets_in(tmp_path) == []


async def test_every_metric_shows(tmp_path: Path) -> None:
    async with attached(tmp_path, "[session]\nping_interval_seconds = 0.2\n") as (site, server, _):
        stream = await site.through()
        await say(stream, b"hello")
        await stream.aclose()
        await server.line("stream closed")
        assert (await site.ask("CONNECT nobody:22"))[0] == 404
        await server.line("request refused", user="kim", reason="unknown_node")
        assert (await site.ask("GET /api/v1/nodes", pki.node_leaf("edge1")))[0] == 403
        async with site.agent("localhost:1"):  # the same identity once more
            await server.line("detached", reason="taken_over")
            page = ""
            while 'qanat_node_round_trip_seconds{node="edge1"}' not in page:
                page = (await site.page("/metrics"))[1]
        shown = set(re.findall(r"^(qanat_\w+?)(?:_bucket|_count|_sum)?(?:{.*})? ", page, re.MULTILINE))
        assert all_metrics() - shown == set()
        assert 'qanat_node_up{node="edge1"} 1.0' in page
        assert 'qanat_attaches_total{outcome="ok"} 2.0' in page
        assert 'qanat_session_ends_total{reason="taken_over"} 1.0' in page
        assert 'qanat_refusals_total{entrance="https",reason="unknown_node"} 1.0' in page
        assert 'qanat_unauthenticated_refusals_total{entrance="https",reason="wrong_role"} 1.0' in page


def all_metrics() -> set[str]:
    """The names of all families, which a page without a sample shows too."""
    empty = metrics.exposition(Counters().snapshot(sessions=0)).decode()
    return set(re.findall(r"^# TYPE (qanat_\w+)", empty, re.MULTILINE))


async def test_nodes_can_be_left_out_of_the_metrics(tmp_path: Path) -> None:
    async with attached(tmp_path, "[metrics]\nper_node = false\n") as (site, _, _):
        page = (await site.page("/metrics"))[1]
        assert "qanat_sessions 1.0" in page
        assert "qanat_credit_granted_bytes" in page and "qanat_send_retained_bytes 0.0" in page
        assert "edge1" not in page


async def test_a_check_of_an_agent_takes_nothing_over_and_leaves_no_warning(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, agent):
        command = [*AGENT, "check", "--config", str(tmp_path / "agent.toml")]
        await trio.run_process(command, capture_stdout=True)
        await server.line("node edge1 may attach, and left")
        await say(await site.through(), b"hello")
        attaches = [line for line in [*server.lines, *agent.lines] if "attach" in line["message"]]
        assert {line["level"] for line in attaches} == {"info"}


async def test_certificates_that_do_not_belong_here(tmp_path: Path) -> None:
    site = Site(tmp_path, '[log]\nlevel = "debug"\n')
    site.write()
    with trio.fail_after(DEADLINE_SECONDS):
        async with site.server() as server:
            for request in ("CONNECT edge1:22", "GET /api/v1/nodes"):
                status, phrase, _ = await site.ask(request, pki.node_leaf("edge1"))
                assert (status, "wrong_role" in phrase or "node" in phrase) == (403, True)
            status, phrase, _ = await site.ask("GET /api/v1/nodes", pki.user_leaf("kim"))
            assert (status, phrase) == (200, "OK")
            await server.line("request refused", node="edge1", reason="wrong_role", entrance="https")
            async with site.agent("localhost:22", leaf=pki.user_leaf("kim")) as agent:
                line = await agent.line("cannot attach", reason="wrong_role")
                assert "spiffe://test.internal/user/kim is not a node's" in line["message"]
                await server.line("attach of an unknown node failed", reason="wrong_role")


async def test_certificates_of_other_issuers_and_times(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write()
    foreign = pki.authority("other.internal")
    trust = pki.authority().roots_pem + foreign.roots_pem
    (tmp_path / "trust.pem").write_bytes(trust)  # so that TLS accepts it, and only the name is wrong
    with trio.fail_after(DEADLINE_SECONDS):
        async with site.server():
            async with site.agent("localhost:22", leaf=pki.node_leaf("edge1", "other.internal")) as agent:
                line = await agent.line("cannot attach", reason="wrong_trust_domain")
                assert "another trust domain than test.internal" in line["message"]
            async with site.agent("localhost:22", leaf=pki.expired_leaf(Role.NODE, "edge1")) as agent:
                line = await agent.line("cannot attach", reason="certificate_expired")
                assert "qanat-agent join SERVER --again" in line["message"]


async def test_roots_for_users_vouch_for_users_alone(tmp_path: Path) -> None:
    site = Site(tmp_path, extra='[tls]\nuser_trust_file = "users.pem"\n')
    site.write()
    others = create_authority(pki.TRUST_DOMAIN).authority
    (tmp_path / "users.pem").write_bytes(others.roots_pem)
    kim, edge1 = others.issue(Role.USER, "kim"), others.issue(Role.NODE, "edge1")
    with trio.fail_after(DEADLINE_SECONDS):
        async with site.server():
            status, _, _ = await site.ask_with(kim, pki.authority().roots_pem)
            assert status == 200
            async with site.agent("localhost:22", leaf=edge1) as agent:
                await agent.line("cannot attach", reason="carrier_lost")
            async with site.agent("localhost:22") as agent:
                await agent.line("attached to")
                assert read_bundle(tmp_path / "node.pem").roots_pem == pki.authority().roots_pem


async def test_the_cause_of_a_failed_start_is_logged_in_one_sentence(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write()
    whole = site.config.read_text()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for table in ("agents", "https", "web", "ops"):
            begin = f"[{table}]\nlisten = "
            value = f'"{address}"' if table == "ops" else f'["{address}"]'
            site.config.write_text(re.sub(re.escape(begin) + ".*", begin + value, whole))
            await refused(site, 1, f": cannot listen on {address}")
            assert sockets_in(tmp_path) == []


async def test_a_fault_of_ours_ends_the_server_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write()
    bug = (
        "import tunnel_server.app as app, tunnel_server.main as main\n"
        "async def fail(*_): raise RuntimeError('a bug')\n"
        "app.relieve_pressure = fail\n"
        "main.entry_point()"
    )
    with trio.fail_after(DEADLINE_SECONDS):
        async with running([sys.executable, "-c", bug, "run", "--config", str(site.config)]) as server:
            line = await server.line("the server ends because of a bug")
            assert line["level"] == "critical"
            assert "RuntimeError: a bug" in line["exc_info"]
            assert await server.exit_code() == 1
            assert sockets_in(tmp_path) == []


async def test_few_descriptors_are_a_warning(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write()
    command = ["sh", "-c", 'ulimit -n 1024 && exec "$@"', "sh", *SERVER, "run", "--config", str(site.config)]
    with trio.fail_after(DEADLINE_SECONDS):
        async with running(command) as server:
            line = await server.line("fewer than [agents] max = 5000")
            assert (line["level"], "room for 896 agents" in line["message"]) == ("warning", True)


async def test_a_server_does_not_start_without_a_certificate_that_is_good(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write()
    (tmp_path / "server.key").chmod(0o644)
    await refused(
        site, 1, f"{tmp_path}/server.key holds a private key and can be read by others; run: chmod 600"
    )
    site.write(pki.expired_leaf(Role.SERVER, "main"))
    await refused(site, 1, f"the certificate in {tmp_path}/server.pem expired at")


async def test_mistakes_in_the_configuration_are_reported_all_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path, "[sesion]\n", {"drain_secnds": "8"})
    site.write()
    output = await refused(site, 2, f"{site.config}: ")
    assert "drain_secnds" in output
    assert "did you mean drain_seconds?" in output
    assert "did you mean session?" in output
    missing = await run_server(tmp_path / "none.toml")
    assert missing.returncode == 2
    assert b"make a server: qanat-server init" in missing.stderr


def sockets_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.sock"))


async def refused(site: Site, code: int, words: str) -> str:
    """Check that the server does not start, and logs ``words`` and no traceback."""
    result = await run_server(site.config)
    output = result.stderr.decode()
    assert (result.returncode, words in output) == (code, True), output
    assert "Traceback" not in output
    return output


async def test_a_lost_agent_shows_in_nodes_events_and_metrics(tmp_path: Path) -> None:
    async with attached(tmp_path, "[session]\ngrace_seconds = 4\n") as (site, server, agent):
        write_user_bundle(tmp_path / "kim.pem", "kim", site.ready["https"])
        assert (await site.page("/metrics"))[1].count('qanat_node_up{node="edge1"} 1.0') == 1
        agent.signal(signal.SIGKILL)
        await server.line("the link to node edge1 was lost")
        assert "lost      carrier_lost" in await ask_as_kim(tmp_path, "events", "edge1")
        assert re.search("grace [0-9]s carrier_lost", await ask_as_kim(tmp_path, "nodes"))
        page = (await site.page("/metrics"))[1]
        assert 'qanat_node_events_total{kind="lost"} 1.0' in page
        assert 'qanat_node_up{node="edge1"} 0.0' in page
        await server.line("node edge1 detached", reason="grace_expired")
        events = json.loads(await ask_as_kim(tmp_path, "events", "--json"))["events"]
        assert [event["kind"] for event in events] == ["server_started", "attached", "lost", "expired"]
        assert {event["node"] for event in events[1:]} == {"edge1"}
        [node] = json.loads(await ask_as_kim(tmp_path, "nodes", "--json"))["nodes"]
        assert (node["state"], node["last_reason"]) == ("gone", "grace_expired")
        assert node["silent_seconds"] >= 3.9


async def test_an_agent_shows_the_state_of_its_link_while_the_cloud_is_away(tmp_path: Path) -> None:
    async with attached(tmp_path, "[session]\ngrace_seconds = 4\n") as (site, server, agent):
        ops = (await agent.line("started"))["status"].removeprefix("http://").rstrip("/")
        server.signal(signal.SIGKILL)
        await agent.line("the link was lost")
        link = json.loads((await site.page("/status.json", ops))[1])["link"]
        assert (link["state"], link["reason"]) == ("grace", "carrier_lost")
        assert 0 < link["grace_seconds_left"] <= 4 and link["round_trip_seconds"]
        await agent.line("ended", reason="grace_expired")
        link = json.loads((await site.page("/status.json", ops))[1])["link"]
        assert (link["state"], link["reason"]) == ("away", "grace_expired")
        assert [event["kind"] for event in link["events"]] == ["away", "grace", "attached"]


async def test_a_subscriber_sees_events_as_they_happen(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, _, agent), trio.open_nursery() as nursery:
        write_user_bundle(tmp_path / "kim.pem", "kim", site.ready["https"])
        run = partial(trio.run_process, env=environment(tmp_path), stdout=subprocess.PIPE, check=False)
        follower = await nursery.start(run, [*QANAT, "events", "edge1", "--follow"])
        assert b"attached" in await follower.stdout.receive_some()
        agent.signal(signal.SIGTERM)
        assert b"ended           agent_stopping" in await follower.stdout.receive_some()
        follower.send_signal(signal.SIGINT)


async def ask_as_kim(folder: Path, *arguments: str) -> str:
    return (await qanat(folder, *arguments)).stdout.decode()
